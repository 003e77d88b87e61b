"""The SDK of Azure, an optional part of the package."""

from pulumi_azure_native import compute as compute
from pulumi_azure_native import network as network
from pulumi_azure_native import resources as resources
from pulumi_azure_native.provider import Provider as Provider

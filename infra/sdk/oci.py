"""The SDK of Oracle Cloud, an optional part of the package."""

from pulumi_oci import core as core
from pulumi_oci import identity as identity
from pulumi_oci.provider import Provider as Provider

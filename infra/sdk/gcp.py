"""The SDK of Google Cloud."""

from pulumi_gcp import compute as compute
from pulumi_gcp.provider import Provider as Provider

"""The SDK of AWS."""

from pulumi_aws import ebs as ebs
from pulumi_aws import ec2 as ec2
from pulumi_aws import ssm as ssm
from pulumi_aws import vpc as vpc
from pulumi_aws.provider import Provider as Provider

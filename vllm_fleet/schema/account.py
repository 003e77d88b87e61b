"""The strict record of ``account`` in a fleet.yml: the only accounts in which its stack may do anything."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vllm_fleet.base.text_form import Form
from vllm_fleet.schema.existing import OCID, UUID, ProjectId
from vllm_fleet.schema.recipe import Strict

_AWS_ACCOUNT = Form("[0-9]{12}", "the id of an account", "write its twelve digits in quotes, without dashes")
_SUBSCRIPTION = Form(UUID, "the id of a subscription", "copy it from 'az account show --query id'")
_TENANCY = Form(rf"ocid1\.tenancy\.{OCID}", "the OCID of a tenancy", "write it such as ocid1.tenancy.oc1..aaaa")


def _aws_account(value: Any) -> Any:
    # YAML reads digits without quotes as a number, which has lost its leading zeros.
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError("is a number: write the account id in quotes, its zeros count")  # noqa: TRY004 - for pydantic
    return value


class Account(Strict):
    """The account of each cloud; credentials of another one are refused."""

    aws: Annotated[str, BeforeValidator(_aws_account), _AWS_ACCOUNT] | None = Field(
        default=None, description="AWS: the id of the account, twelve digits in quotes."
    )
    gcp: list[ProjectId] | None = Field(
        default=None, min_length=1, description="Google: the projects that hosts may be in."
    )
    azure: Annotated[str, _SUBSCRIPTION] | None = Field(
        default=None, description="Azure: the id of the subscription, which is used and not that of 'az account set'."
    )
    oci: Annotated[str, _TENANCY] | None = Field(default=None, description="Oracle: the OCID of the tenancy.")

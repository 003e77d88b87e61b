"""The strict record of ``account`` in a fleet.yml: the only accounts in which its stack may do anything."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vllm_fleet.schema.recipe import Strict


def _aws_account(value: Any) -> Any:
    # YAML reads digits without quotes as a number, which has lost its leading zeros.
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError("is a number: write the account id in quotes, its zeros count")  # noqa: TRY004 - for pydantic
    return value


class Account(Strict):
    """The account of each cloud; credentials of another one are refused."""

    aws: Annotated[str, BeforeValidator(_aws_account), Field(pattern=r"^[0-9]{12}$")] | None = Field(
        default=None, description="AWS: the id of the account, twelve digits in quotes."
    )
    gcp: list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9:.-]{4,}$")]] | None = Field(
        default=None, min_length=1, description="Google: the projects that hosts may be in."
    )
    azure: Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")] | None = Field(
        default=None, description="Azure: the id of the subscription, which is used and not that of 'az account set'."
    )
    oci: Annotated[str, Field(pattern=r"^ocid1\.tenancy\.")] | None = Field(
        default=None, description="Oracle: the OCID of the tenancy."
    )

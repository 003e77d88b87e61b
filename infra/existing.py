"""Networks that an account has: lookups at every preview, before anything is made. Nothing of them is changed."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import TypeVar

import pulumi

from infra.hosts import CloudArgs
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet import existing_networks
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.existing import is_private_range

T = TypeVar("T")


class Lookup:
    """Asks a cloud for what an account has, and says with the line of ``fleet.yml`` what is wrong.

    The answers are waited for: the program ends at a wrong one with nothing made. Each question is asked once.
    """

    def __init__(self, args: CloudArgs, opts: pulumi.ResourceOptions) -> None:
        self.opts = pulumi.InvokeOptions(parent=opts.parent, provider=opts.provider)
        self._args = args
        self._known: set[str] = set()

    def is_new(self, question: str) -> bool:
        """Whether a question was not asked yet."""
        new = question not in self._known
        self._known.add(question)
        return new

    def ask(self, host: HostPlan, keys: Sequence[str], function: Callable[..., T], **asked: str) -> T:
        """The cloud's answer.

        Args:
            host: the host that needs it.
            keys: the place below ``existing`` in the placement.
            function: a function of the SDK.
            asked: its arguments.

        Raises:
            FleetError: the cloud shows no such thing.
        """
        try:
            return function(**asked, opts=self.opts)
        except Exception as fault:  # the SDK raises no narrower one
            raise self.error(host, keys, f"the cloud does not show it: {fault}") from None

    def must(self, host: HostPlan, keys: Sequence[str], found: str, wanted: str, what: str) -> None:
        """Compares an answer with what ``fleet.yml`` says.

        Args:
            host: the host.
            keys: the place below ``existing``.
            found: the cloud's answer.
            wanted: what it must be.
            what: the property in words, such as ``zone``.

        Raises:
            FleetError: they differ.
        """
        if found != wanted:
            raise self.error(host, keys, f"its {what} is {found}, not {wanted}")

    def inside(self, host: HostPlan, keys: Sequence[str], found: str) -> None:
        """Checks the range of a subnet: private, and within the range that ``fleet.yml`` gives for the network.

        Raises:
            FleetError: it is neither.
        """
        existing = existing_networks.of(host)
        if not is_private_range(found):
            raise self.error(host, keys, f"its range {found} is not private: hosts take connections from RFC 1918 only")
        if existing and existing.range:
            mine, whole = ipaddress.ip_network(found), ipaddress.ip_network(existing.range)
            if not mine.subnet_of(whole):  # type: ignore[arg-type] # both are IPv4: is_private_range
                raise self.error(host, keys, f"its range {found} is not in existing.range, {whole}")

    def error(self, host: HostPlan, keys: Sequence[str], message: str) -> FleetError:
        """An error at a key below ``existing``."""
        place = (*existing_networks.place(host), *keys)
        return self._args.document.error(place, message, "correct it in fleet.yml; nothing was made")

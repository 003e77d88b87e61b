"""The firewall of the serving hosts."""

from __future__ import annotations

from collections.abc import Sequence


def firewall_rules(ports: Sequence[int], gateways: Sequence[str]) -> str:
    """Nftables rules: only the gateways and the host itself reach vLLM, whose API key does not protect all routes.

    Args:
        ports: the ports of vLLM and of its readiness.
        gateways: IPv4 addresses of the gateways.
    """
    numbers = ", ".join(str(port) for port in sorted(ports))
    allowed = ", ".join(sorted(gateways))
    accept = f"    tcp dport {{ {numbers} }} ip saddr {{ {allowed} }} accept\n" if gateways else ""
    return (
        "# Made by vllm-fleet; another run replaces what is changed here.\n"
        "table inet vllm_fleet {}\n"
        "delete table inet vllm_fleet\n"
        "table inet vllm_fleet {\n"
        "  chain input {\n"
        "    type filter hook input priority filter; policy accept;\n"
        '    iifname "lo" accept\n'
        f"{accept}"
        f"    tcp dport {{ {numbers} }} drop\n"
        "  }\n"
        "}\n"
    )

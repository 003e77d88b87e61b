"""``python -m vllm_fleet``: the same as the program ``vllm-fleet``."""

from __future__ import annotations

from vllm_fleet.cli import main

main()

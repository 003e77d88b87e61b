"""The roles of each kind of host."""

from __future__ import annotations

#: The roles that may change each kind of host, in the order in which they run; a host's manifest names its own.
ROLES = {
    "serving": (
        *("host_baseline", "image_ports"),
        *("nvidia_driver", "amd_driver", "harmony_encodings", "model_store"),
        *("vllm_engine", "container_engine", "vllm_image", "vllm_firewall", "vllm_service"),
    ),
    "gateway": ("host_baseline", "image_ports", "gateway"),
}
#: Roles that other roles use on a serving host; they own no item of a manifest.
HELPERS = ("apt_repository", "driver_packages", "host_reboot", "gateway_traffic", "foreign_unit_files")
ALL_ROLES = ("mirror", *ROLES["serving"], "gateway")

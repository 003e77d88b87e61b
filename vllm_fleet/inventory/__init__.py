"""Plan JOIN stack -> a site: everything that each host gets, as flat role-prefixed variables and as a manifest."""

from vllm_fleet.inventory.join import build, find_refusals, load
from vllm_fleet.inventory.refusals import Refusal
from vllm_fleet.inventory.roles import ALL_ROLES, HELPERS, ROLES
from vllm_fleet.inventory.site import Site, SiteHost

__all__ = ["ALL_ROLES", "HELPERS", "ROLES", "Refusal", "Site", "SiteHost", "build", "find_refusals", "load"]

"""Rehearsed clouds: emulated providers for the real Pulumi engine and the real SDKs of the clouds.

Providers in this process replace the plugins of aws, gcp, azure-native, oci and digitalocean; the engine finds them
through ``PULUMI_DEBUG_PROVIDERS``. They refuse what the clouds refuse, as far as ``tables/`` describes it, keep their
resources in one file, and boot hosts of the lab with the tools of their class. Not emulated: firewalls, routes, private
networks (a booted host has one address for all of its addresses), prices, quotas, and several accounts or projects of
one cloud in a run.
"""

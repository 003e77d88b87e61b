"""Rehearsed clouds: what the real Pulumi engine and the real SDKs of the clouds talk to where no cloud may be asked.

Providers served by this process stand in for the plugins of aws, gcp, azure-native, oci and digitalocean; the engine
finds them through ``PULUMI_DEBUG_PROVIDERS``. They refuse what the clouds refuse, as far as ``tables/`` says, keep what
they made in one file, and boot hosts of the lab that pose as their class. Not emulated: firewalls, routes, private
networks (a booted host has one address, which stands for all of its addresses), prices and quotas, and one
configuration a cloud: two accounts or projects in one run are not told apart.
"""

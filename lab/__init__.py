"""The lab: real systemd hosts on this machine, a stand-in for a cloud's instances and network."""

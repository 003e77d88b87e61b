"""The lab: systemd hosts on this machine that stand in for the instances and the network of a cloud."""

"""What hosts report about themselves, judged: vetoes, and the host class that a host belongs to."""

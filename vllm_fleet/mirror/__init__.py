"""What a fleet fetches from outside: named by its plan, kept in one folder, verified by digests. No network here."""

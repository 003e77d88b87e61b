"""What a mirror of artifacts holds, and what its clients read from it."""

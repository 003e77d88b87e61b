"""What the lab serves and serves with: the CPU engine, the harmony vocabulary and the lab model, built once into the cache."""

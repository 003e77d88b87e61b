"""What the lab serves and serves with: CPU engine, harmony vocabulary and lab model, built once into the cache."""

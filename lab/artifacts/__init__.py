"""The lab's artifacts: CPU engine, harmony vocabulary and model, built once into the cache."""

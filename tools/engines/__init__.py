"""Engine name manifests: what each pinned vLLM release reads, taken from its published wheel by static reading."""

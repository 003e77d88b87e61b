"""Engine name manifests: names that each pinned vLLM release reads, from a static analysis of its published wheel."""

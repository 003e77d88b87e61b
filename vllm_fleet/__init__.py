"""vllm-fleet: recipes for gpt-oss on vLLM, resolved into what every host of a fleet must have."""

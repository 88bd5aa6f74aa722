"""What leaves the project: folders for transformers, vLLM and the hub."""

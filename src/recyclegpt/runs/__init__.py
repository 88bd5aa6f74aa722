"""A run and its folder: name, provenance, resume, result."""

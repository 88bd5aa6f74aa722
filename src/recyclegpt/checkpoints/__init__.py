"""Weights and state on disk and back."""

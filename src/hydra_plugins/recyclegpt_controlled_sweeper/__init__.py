"""Hydra sweeper `controlled`: a grid, and next to it runs to compare the grid with."""

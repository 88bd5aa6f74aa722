"""Hydra sweeper `controlled`: a grid, and beside it runs to compare the grid with."""

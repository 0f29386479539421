"""Distances between all datasets of a bank: plan, tile, matrix."""

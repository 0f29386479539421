"""Distances between token distributions; pure functions of arrays."""

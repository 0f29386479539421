"""Combinations by merge methods that look at each value: single ones, panels of many, and delta space."""

"""Predictions as folders of adapters: all of a bank in one pass over its rows, and any one of a run."""

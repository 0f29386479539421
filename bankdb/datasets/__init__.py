"""Datasets: texts read, split, tokenized."""

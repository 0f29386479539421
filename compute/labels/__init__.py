"""Labelled examples of targets, and the base model's loss on them under combinations of a bank's adapters."""

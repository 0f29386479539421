"""Adapters as PEFT stores them: configuration, weights, layout, folders, model cards."""

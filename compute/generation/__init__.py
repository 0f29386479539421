"""The base model answers with an adapter; knows no bank."""

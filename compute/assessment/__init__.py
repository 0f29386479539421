"""Whether adapters help on a user's own test examples: anybody's adapters, with a bank or without."""

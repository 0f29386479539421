"""The `bank` command."""

"""Commands that keep a bank elsewhere and bring it back."""

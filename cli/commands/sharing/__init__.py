"""Banks and adapters that travel."""

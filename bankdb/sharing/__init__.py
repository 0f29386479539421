"""Banks and adapters that travel: to the hub, a folder or a tar, and back."""

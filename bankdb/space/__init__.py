"""What a bank takes on its disk, or in its object store, and what of that can be freed."""

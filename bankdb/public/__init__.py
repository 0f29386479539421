"""Public banks: what an owner, a collection or a library on the hub has, and which dataset is which adapter's."""

"""Zarr arrays in a folder or under a URL: the only place that tells the two apart."""

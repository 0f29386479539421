"""Listings of the hub: an owner's repositories and the items of a collection, bounded whatever a hub sends."""

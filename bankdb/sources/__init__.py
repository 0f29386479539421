"""Where pairs come from: folders, manifests, the hub."""

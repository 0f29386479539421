"""Where banks and adapters travel to and from: folders, tars, and the hub."""

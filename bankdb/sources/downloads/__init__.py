"""Files of the hub: several at a time, resumed, checked, and kept in the hub's own cache."""

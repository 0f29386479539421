"""C @ Theta in column panels, in factor space and in delta space."""

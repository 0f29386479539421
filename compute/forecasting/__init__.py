"""A run counted before it runs, and the time that it may take."""

"""What a command logs for programs, where that is asked for."""

"""Regular expressions of others, evaluated in bounded time and memory."""

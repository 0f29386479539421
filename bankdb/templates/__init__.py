"""Chat templates of others, in bounded time and memory."""

"""What an ingest is made of: what comes in, read and tokenized beside it, and stored."""

"""What `bank ingest` shows before it begins."""

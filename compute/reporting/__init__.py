"""What a report shows, gathered as frozen records."""

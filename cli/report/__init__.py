"""The report of a bank as one HTML file; see `cli.report.page`."""

"""The report of a bank as one HTML file; see `compute.reporting.page.page`."""

"""The SQL catalogue: tables, two backends, locks, runs, generations, migrations."""

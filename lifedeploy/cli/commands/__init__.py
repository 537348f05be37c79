"""A file per command: its options, the workflow that it calls, and what it shows of the report."""

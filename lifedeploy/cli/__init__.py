"""The command line: arguments to requests, reports to tables. The only place that prints."""

"""One verb per file: a frozen request in, a report out, no printing. The command line is a thin layer on top."""

"""Scripts that measure, run as ``python -m benchmarks.FOLDER.SCRIPT`` from the root of the repository."""

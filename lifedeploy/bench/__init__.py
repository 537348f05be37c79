"""Measuring engines against each other: rounds in turn in one process, raw samples kept, summaries derived."""

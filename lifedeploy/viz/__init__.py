"""Pictures of what was measured, kept and trained. All that knows matplotlib."""

"""Whether two forms of a model compute the same thing. Knows engines by their contract only."""

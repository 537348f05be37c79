"""A schedule for the machine: how long layers take by their tokens, what dropping loses, and the best of both."""

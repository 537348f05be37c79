"""Training: the two-stage scheme of the paper, dense fine-tuning, and what goes beyond."""

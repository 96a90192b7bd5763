"""Training: the trainer, the optimizer, the two phases, mixed precision, exact resume, several processes."""

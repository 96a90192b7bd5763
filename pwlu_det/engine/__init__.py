"""Training: trainer, optimizer, two-phase hook, mixed precision, exact resume and multi-process support."""

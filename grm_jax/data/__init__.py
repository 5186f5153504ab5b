"""Training data: sources, mixtures and batches."""

"""Synthetic judging examples and a teacher for them (dataset `practice`)."""

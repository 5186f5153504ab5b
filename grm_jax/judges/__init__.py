"""Models that judge responses, and their evaluation during training."""

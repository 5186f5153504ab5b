"""The text side of the GRM: examples, prompts, scores and votes; no JAX."""

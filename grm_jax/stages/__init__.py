"""Stages of the pipeline; grm_jax.main runs one of them."""

"""Ahead-of-time compilation for TPU topologies, and its cost model."""

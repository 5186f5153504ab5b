"""Benchmarks, which print a table and write JSON."""

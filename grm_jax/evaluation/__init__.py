"""Benchmarks, metrics, scaling curves, plots and reports of judges."""

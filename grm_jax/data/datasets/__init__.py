"""Adapters of published datasets: each maps a row to judging examples."""

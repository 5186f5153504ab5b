"""Reward models with a scalar head: the meta RM and baselines."""

"""Reinforcement learning by rewards (GRPO)."""

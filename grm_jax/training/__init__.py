"""Losses, optimizer, training state and step, and what stages share."""

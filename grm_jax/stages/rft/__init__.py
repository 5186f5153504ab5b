"""Rejective fine-tuning (RFT)."""

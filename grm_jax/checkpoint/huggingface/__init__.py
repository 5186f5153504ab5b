"""Hugging Face model directories: read and write."""

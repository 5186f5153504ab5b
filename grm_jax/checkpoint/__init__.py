"""Checkpoints: Orbax, model directories, Hugging Face and GGUF files."""

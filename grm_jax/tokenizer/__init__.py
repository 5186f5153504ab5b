"""Tokenizers (SentencePiece, byte-level BPE) and chat formats."""

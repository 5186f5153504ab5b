"""File access: atomic writes, journals, gs:// mirrors and row readers."""

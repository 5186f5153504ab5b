"""The whole method (SPCT): all stages in one command."""

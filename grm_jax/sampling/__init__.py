"""Generation: an engine with prompt slots, prefill, decode and sampling."""

"""The network: transformer, attention, KV cache, log-probabilities, int8."""

"""The HTTP service in front of a judge, its page, and reward clients."""

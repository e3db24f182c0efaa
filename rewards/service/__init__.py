"""The reward service: verifiers in processes that can be killed, asked from anywhere at once."""

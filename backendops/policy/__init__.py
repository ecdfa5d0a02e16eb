"""Reads and checks the YAML policy, and pairs every job with its backends."""

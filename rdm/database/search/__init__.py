"""Nearest neighbors: exact search, and the index that approximates it."""

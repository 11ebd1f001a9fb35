"""Metrics of pictures, and means with their intervals."""

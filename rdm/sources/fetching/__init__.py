"""Photographs behind URLs: rounds of img2dataset over a shard, and their results."""

"""Neighbor tables of query sets: lookup, exact repair, and what is excluded."""

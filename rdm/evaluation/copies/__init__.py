"""Copies of training photographs among samples: a detector, its power, and an exact test."""

"""Pipelines for Python: ours with diffusers' names, and diffusers' own of our models."""

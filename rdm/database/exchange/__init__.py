"""Embeddings from and to other tools."""

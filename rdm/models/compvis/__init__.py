"""Checkpoints in the released layout of latent diffusion."""

"""Gaussian diffusion as pure functions: schedules, process, guidance, thresholding, samplers, and
their head."""

"""Gaussian diffusion as pure functions: schedules, process, guidance, samplers, and their head."""

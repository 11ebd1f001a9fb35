"""Training data: latent caches, neighbors, photographs, and the order they are read in."""

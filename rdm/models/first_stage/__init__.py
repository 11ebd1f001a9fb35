"""First stages: autoencoders between pictures and latents, and what trains them."""

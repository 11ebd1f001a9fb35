"""Training: latent cache, data order, objectives, the loop, checkpoints, recipes; `engine` is the
only user of deepspeed.
"""

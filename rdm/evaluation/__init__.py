"""Measurements: held-out losses, FID and KID, encoders and first stages."""

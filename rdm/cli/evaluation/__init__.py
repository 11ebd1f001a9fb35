"""`rdm evaluate ...`."""

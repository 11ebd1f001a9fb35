"""`rdm database ...` and `rdm neighbors ...`."""

"""Side-by-side measurements: each compares with a peer or a limit in one run and prints a ratio."""

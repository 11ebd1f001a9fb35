"""Scores of the 8-bit comparison, which shortlists and compiled loops share."""

DEAD = -(2**31)  # the score of a vector that may not be found: no true one is as small

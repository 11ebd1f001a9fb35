"""Recognition of samples by judges that training never used."""

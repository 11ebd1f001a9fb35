"""One photograph: decoding it, cutting it, and what is left out."""

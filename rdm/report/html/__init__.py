"""Pages: their templates, pictures, plots and galleries."""

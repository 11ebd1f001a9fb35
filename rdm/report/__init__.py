"""Reports: the quickstart page, galleries, plots, and the cards of a model and a dataset."""

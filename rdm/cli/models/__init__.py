"""Commands of models: their costs, data, training, pictures and files."""

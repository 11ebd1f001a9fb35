"""Objectives: one module per kind, with its loss and how its data is opened."""

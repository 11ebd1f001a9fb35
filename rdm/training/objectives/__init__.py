"""Objectives: one module per kind, each with its configuration, its loss and how its data is
opened."""

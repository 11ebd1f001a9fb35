"""Prefect flows: thin, one per user-visible job, one task per stage."""

"""Fetching over HTTP: the client, which addresses may be reached, and what URLs look like."""

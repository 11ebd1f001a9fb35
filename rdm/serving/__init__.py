"""Serving: an HTTP server that looks photographs up and draws from them, and its page."""

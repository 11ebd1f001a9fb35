"""The HTTP side: routes, problems, the guard in front of them, and the server itself."""

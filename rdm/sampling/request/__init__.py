"""What a user asks for: the request, its start, its turn and its seeds, as they are checked."""

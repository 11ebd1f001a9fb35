"""A picture's recipe: the record, the file that carries it, and the credits and marks in it."""

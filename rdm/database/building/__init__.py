"""Building and updating a database: stages in order, and what they will cost."""

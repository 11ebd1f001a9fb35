"""Checks of a stored database against its records."""

"""A trained system: space, conditions, head and network; its loss, samples and folder."""

"""What a trained system is: a space, conditions, a head and a network; its loss, its samples, its
folder."""

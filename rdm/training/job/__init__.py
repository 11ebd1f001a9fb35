"""Starting a training job on one or several machines, and watching it."""

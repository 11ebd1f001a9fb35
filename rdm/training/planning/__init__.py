"""What a training run will take: parameters, operations, memory, time."""

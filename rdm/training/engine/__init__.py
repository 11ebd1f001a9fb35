"""One rank's step: DeepSpeed, the optimizer, averages, and the device."""

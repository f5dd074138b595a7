"""What TPUs do in another way, as Pallas kernels."""

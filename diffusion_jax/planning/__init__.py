"""What a training will need and reach on some devices, as the compiler tells it before anything runs."""

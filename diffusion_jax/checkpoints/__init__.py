"""Checkpoints: written, committed and deleted by Orbax, verified by a manifest of our own."""

"""Checkpoints: written by Orbax, sealed by our manifest, committed by one rename."""

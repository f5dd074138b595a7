"""Linen modules of the feature extractors."""

"""Readers that do not trust files left by an earlier command or a user."""

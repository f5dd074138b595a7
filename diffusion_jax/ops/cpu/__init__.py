"""Implementations for XLA's CPU backend."""

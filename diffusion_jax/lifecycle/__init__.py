"""Lifecycle of a command: ownership of folders, and requests to stop."""

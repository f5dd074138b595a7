"""Sections of the page; one file each, and one entry of `SECTIONS` in registry.py."""

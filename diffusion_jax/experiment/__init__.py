"""From a config to the objects that commands work with, and whether its fields fit one another."""

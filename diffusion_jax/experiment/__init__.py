"""Construction of the objects that commands use from a config, and checks of its fields against each other."""

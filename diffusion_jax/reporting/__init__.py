"""Outputs of commands: pictures, plots and result files."""

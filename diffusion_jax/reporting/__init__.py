"""What a command leaves for people and scripts: pictures and result files."""

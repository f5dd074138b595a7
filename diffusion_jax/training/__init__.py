"""Training: state, step, and what a run does and says besides its steps."""

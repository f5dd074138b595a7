"""The forward process q: variance schedules and the Gaussian identities."""

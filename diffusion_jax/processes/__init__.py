"""The forward processes q: x_t = signal x_0 + std eps, variance schedules, and the identities of all processes."""

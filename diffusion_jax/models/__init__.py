"""Networks, what their outputs mean, and denoisers made of them."""

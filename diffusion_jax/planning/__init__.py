"""Memory and speed of a training on given devices, estimated by the compiler before anything runs."""

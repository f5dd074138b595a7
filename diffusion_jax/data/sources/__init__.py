"""Sources of images, one module per source, each with a function that returns a `Source`."""

"""Where images come from: one module a source, each with `find(request) -> Source`."""

"""Loss on held-out text, and merge weights that are found by it."""

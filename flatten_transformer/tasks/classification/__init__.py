"""Image classification; import from the modules."""

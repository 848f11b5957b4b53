"""Training and using models; import from the modules, so that prediction does not load Lightning."""

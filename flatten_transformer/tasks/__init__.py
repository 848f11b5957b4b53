"""Tasks: one folder each, with the same file names; import from the submodules, so that prediction does not load Lightning."""

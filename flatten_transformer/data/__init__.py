"""Data modules and the embedded data; import from the modules, so that nothing heavy loads unasked."""

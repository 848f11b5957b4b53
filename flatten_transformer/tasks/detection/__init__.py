"""Object detection and instance segmentation; import from the modules."""

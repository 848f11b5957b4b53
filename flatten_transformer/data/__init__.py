"""Data formats, readers and the base data module; import from the submodules to keep imports light."""

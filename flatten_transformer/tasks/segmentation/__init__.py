"""Semantic segmentation; import from the modules."""

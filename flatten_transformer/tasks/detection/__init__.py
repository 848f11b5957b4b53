"""Detection: data (coco_images), preprocessing, model (detector, cascade, pyramid, options), task, metrics, plots, predict, spec.

Import from the submodules.
"""

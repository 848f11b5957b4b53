"""Segmentation: data, preprocessing, augmentation, model, inference (windows), task, metrics, plots, predict, spec.

Import from the submodules.
"""

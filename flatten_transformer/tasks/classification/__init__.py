"""Classification: data, preprocessing, augmentation, mixing, model, task, metrics, plots, predict, spec.

Import from the submodules.
"""

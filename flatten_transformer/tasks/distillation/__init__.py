"""Distillation of a linear student from its softmax teacher."""

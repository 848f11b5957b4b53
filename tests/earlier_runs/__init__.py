"""Checkpoints and models of earlier versions, see README.md."""

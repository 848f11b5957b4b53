"""The version, which the build reads and `flatten --version` prints."""

__version__ = "0.1.0"

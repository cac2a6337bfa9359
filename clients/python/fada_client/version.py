"""The version of both distributions, `fada` and `fada-client`: one release, one number."""

__version__ = "0.1.0"

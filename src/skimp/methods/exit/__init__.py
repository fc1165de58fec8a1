"""Adaptive early exit: a token leaves the model at the layer where it is decided."""

from skimp.methods.exit.method import METHOD

__all__ = ["METHOD"]

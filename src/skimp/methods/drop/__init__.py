"""Static dropping of attention sublayers, FF sublayers and whole layers."""

from skimp.methods.drop.method import METHOD
from skimp.methods.drop.section import Drop, FillKind

__all__ = ["METHOD", "Drop", "FillKind"]

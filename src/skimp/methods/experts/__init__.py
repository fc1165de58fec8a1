"""Prompt-adaptive FF pruning: the prompt picks the neurons that its answer needs."""

from skimp.methods.experts.method import METHOD

__all__ = ["METHOD"]

"""Choosing what to leave out."""

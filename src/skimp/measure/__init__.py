"""Measuring cost, speed, quality and fidelity, always beside the dense model."""

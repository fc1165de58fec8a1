"""Text that a model is calibrated on, and the replay of the model over it."""

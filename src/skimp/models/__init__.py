"""Models: loading them, and knowing what is in them."""

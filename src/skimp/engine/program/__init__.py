"""A decode step as a native program: read off the model's code, lowered, bound, run.

`capture` notes what the model's own code asks of torch, `lower` turns that into a listing with
`operations` for each ATen operation and an `arena` for what passes through, `bind` gives every
operand its address and runs the listing by one call into the native library (program.h).
"""

"""One module an engine, loaded by :mod:`bench.engines.worker` inside that engine's own process.

A module imports what it needs at its top, so that importing it is the test of whether the engine
is installed, and gives two functions: `versions()` and `load(options)`. Modules of engines that
live in an environment of their own use nothing of skimp, torch or transformers.
"""

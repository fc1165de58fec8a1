"""Planned models as files that stock engines load, one file a target; see :mod:`.target`."""

"""What methods offer to the search, one a file; see :mod:`skimp.finder.choices`."""

"""Methods of leaving something out: one folder each, found by `registry`."""

"""Recipes: a paper's experiments as commented YAML, run on any model beside the paper's figures."""

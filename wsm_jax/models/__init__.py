"""Architectures as pure functions on nested dictionaries; see ``model.py``."""

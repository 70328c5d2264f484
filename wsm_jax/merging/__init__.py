"""Merging checkpoints on disk: which ones, with what weights (a MergeSpec), their sum, and the record of it.

Nothing here imports a model.
"""

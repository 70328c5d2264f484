"""Merging checkpoints: which ones (selection), what to do with each leaf (leaves), the sum (offline), the record of it
(provenance). Nothing here imports a model."""

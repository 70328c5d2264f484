"""Merging checkpoints: which ones (selection, steps, inputs), their weights (weighting), one merge as a value (spec),
the sum (engine), to disk or in memory (offline), the record of it (provenance). Nothing here imports a model."""

"""Checkpoints on disk: formats, the run directory, its two streams. The only folder that imports Orbax."""

"""Comparisons of runs, figures, tables and reports."""

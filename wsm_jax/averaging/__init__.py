"""Averages of the parameters along a run: pure functions on pytrees (average, window), their settings (registry), their
place beside the train state (tracking), and EMAs of any length after the fact (posthoc)."""

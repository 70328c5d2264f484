"""The method: decay curves, merge weights, schedules, averages, the merge in memory.

No I/O, no configuration, no model."""

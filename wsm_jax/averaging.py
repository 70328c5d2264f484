"""Averages of the parameters along a run: pure functions on pytrees (average, window), their settings (registry), their
place beside the train state (tracking), and EMAs of any length after the fact (posthoc)."""

from wsm_jax.core.averages import (
    Average,
    ema,
    half_life_decay,
    init_all,
    interval_mean,
    lawa,
    power_ema,
    read_all,
    running_mean,
    swa,
    update_all,
)
from wsm_jax.core.online import online_wsm

__all__ = [
    "Average",
    "ema",
    "half_life_decay",
    "init_all",
    "interval_mean",
    "lawa",
    "online_wsm",
    "power_ema",
    "read_all",
    "running_mean",
    "swa",
    "update_all",
]

"""The faults that the fast tests must find, a line each."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault: ``old`` in ``wsm_jax/<file>``, which is there once, becomes ``new``.

    ``tests`` names the files under ``tests/`` that should find it, parted by spaces.
    """

    what: str
    file: str
    old: str
    new: str
    tests: str


DECAY, COEFFICIENTS, RATES = "core/test_decay.py", "core/test_coefficients.py", "core/test_coefficients_rates.py"
MERGE_WEIGHTS = "core/test_merge_weights.py"
SCHEDULES, AVERAGES, ONLINE = "core/test_schedules.py", "core/test_averages.py", "core/test_online.py"
MERGE, OFFLINE, FAULTS = "core/test_merge.py", "merging/test_offline.py", "merging/test_faults.py"
SELECTION, WEIGHTING, STEPS = "merging/test_selection.py", "merging/test_weighting.py", "merging/test_steps.py"
UNION, POSTHOC = "merging/test_recipe_union.py", "core/test_posthoc.py"

MUTANTS = [
    Mutant("a sign", "core/decay.py", "0.5 * (1.0 + xp.cos", "0.5 * (1.0 - xp.cos", DECAY),
    Mutant("t for 1 - t", "core/decay.py", "1.0 - END ** (1.0 - t)", "1.0 - END**t", DECAY),
    Mutant("a sign", "core/decay.py", "(END**-2 - 1.0)", "(END**-2 + 1.0)", DECAY),
    Mutant(
        "the oldest loses its share",
        "core/coefficients.py",
        "(([1.0], w, [0.0]))",
        "(([w[0]], w, [0.0]))",
        COEFFICIENTS,
    ),
    Mutant(
        "not turned back",
        "core/coefficients.py",
        "checkpoint_weights[:0:-1])[::-1]",
        "checkpoint_weights[:0:-1])",
        COEFFICIENTS,
    ),
    Mutant(
        "a window one interval short",
        "core/coefficients.py",
        "float(f(i / count))",
        "float(f(i / (count - 1)))",
        COEFFICIENTS,
    ),
    Mutant(
        "the newest for the oldest",
        "core/coefficients.py",
        "farther[0] += 1.0 - factor",
        "farther[-1] += 1.0 - factor",
        MERGE_WEIGHTS,
    ),
    Mutant("one seed for all", "core/coefficients.py", "default_rng(int(seed[1]))", "default_rng(0)", MERGE_WEIGHTS),
    Mutant(
        "off by one", "core/coefficients.py", "(count * (count + 1) / 2)", "(count * (count - 1) / 2)", COEFFICIENTS
    ),
    Mutant(
        "off by one", "core/coefficients.py", "np.arange(count - 1, -1, -1)", "np.arange(count, 0, -1)", COEFFICIENTS
    ),
    Mutant("a loose check", "core/coefficients.py", "c.sum() - 1.0) > 1e-6", "c.sum() - 1.0) > 1e-2", COEFFICIENTS),
    Mutant(
        "a wrong grid of means",
        "core/merge_weights.py",
        "float(f(j / count))",
        "float(f(j / (count + 1)))",
        COEFFICIENTS,
    ),
    Mutant(
        "a window one interval short",
        "core/merge_weights.py",
        "(at[-1] - at[0]) * (count - 1) / count",
        "(at[-1] - at[0])",
        MERGE_WEIGHTS,
    ),
    Mutant("the end point is moved", "core/merge_weights.py", "weights.size - ends", "weights.size", MERGE_WEIGHTS),
    Mutant(
        "the neighbour's length", "core/weight_decay.py", "target[:-1] - rho[1:] *", "target[:-1] - rho[:-1] *", RATES
    ),
    Mutant("off by one", "core/weight_decay.py", "target = s * after[1:]", "target = s * after[:-1]", RATES),
    Mutant("one decay too few", "core/weight_decay.py", "(1.0 - shrink) * h[-1]", "h[-1]", RATES),
    Mutant(
        "a ramp turned round",
        "core/weight_decay.py",
        "left + (right - left) * inside",
        "right + (left - right) * inside",
        RATES,
    ),
    Mutant(
        "off by one",
        "core/schedules.py",
        "peak * (count + 1) / (warmup_steps + 1)",
        "peak * count / warmup_steps",
        SCHEDULES,
    ),
    Mutant("a comparison", "core/schedules.py", "jnp.where(count <= start", "jnp.where(count < start", SCHEDULES),
    Mutant("off by one", "core/schedules.py", "% cycle + 1) / cycle", "% cycle) / cycle", SCHEDULES),
    Mutant(
        "off by one",
        "core/schedules.py",
        "rates[a - steps[0] : b - steps[0]]",
        "rates[a - steps[0] + 1 : b - steps[0] + 1]",
        RATES,
    ),
    Mutant("a start forgotten", "core/schedules.py", "begun(jnp.maximum(count - start, 0))", "begun(count)", SCHEDULES),
    Mutant(
        "a max for a min",
        "core/schedules.py",
        "np.minimum.accumulate(means)",
        "np.maximum.accumulate(means)",
        RATES,
    ),
    Mutant("the first sample", "core/averages.py", "jnp.where(n == 1, leaf", "jnp.where(n == 0, leaf", AVERAGES),
    Mutant("a comparison", "core/averages.py", "jnp.asarray(step >= start", "jnp.asarray(step > start", AVERAGES),
    Mutant("off by one", "core/averages.py", "(step - 1) % interval < every", "step % interval < every", AVERAGES),
    Mutant(
        "a max for a min",
        "core/averages.py",
        'jnp.minimum(state["count"], count)',
        'jnp.maximum(state["count"], count)',
        AVERAGES,
    ),
    Mutant("a wrong exponent", "core/averages.py", "power(width) + 1.0", "power(width)", AVERAGES),
    Mutant("another root", "core/averages.py", ".real.max())", ".real.min())", AVERAGES),
    Mutant(
        "the wrong age",
        "core/online.py",
        "windows.motion(step - every, decayed)",
        "windows.motion(step, decayed)",
        ONLINE,
    ),
    Mutant(
        "a min for a max", "core/online.py", "jnp.argmax(windows.age(step))", "jnp.argmin(windows.age(step))", ONLINE
    ),
    Mutant("a swapped comparison", "core/posthoc.py", "np.where(t_a < t_b", "np.where(t_a > t_b", POSTHOC),
    Mutant("a sum that is not 1", "core/posthoc.py", "return found / found.sum()", "return found", POSTHOC),
    Mutant(
        "a checkpoint dropped",
        "core/merge.py",
        "if any(vector[index] for vector",
        "if all(vector[index] for vector",
        MERGE,
    ),
    Mutant(
        "first for last",
        "core/merge.py",
        "{LAST: named[last], FIRST: named[first]",
        "{LAST: named[first], FIRST: named[last]",
        MERGE,
    ),
    Mutant(
        "the last rule that matches",
        "core/leaf_weights.py",
        "for pattern, v in rules if",
        "for pattern, v in reversed(rules) if",
        MERGE,
    ),
    Mutant(
        "a leaf that is not compared",
        "core/leaves.py",
        "for path, leaf in other.items():",
        "for path, leaf in list(other.items())[1:]:",
        f"{MERGE} {FAULTS}",
    ),
    Mutant(
        "a lossy default",
        "core/leaves.py",
        "else np.dtype(np.float32)",
        "else np.dtype(np.float16)",
        "merging/test_foreign.py",
    ),
    Mutant(
        "off by one",
        "merging/selection.py",
        "last_step - (count - 1) * interval",
        "last_step - count * interval",
        SELECTION,
    ),
    Mutant(
        "a wrong start",
        "merging/selection.py",
        "self.interval if self.snapshot == MEAN else 0",
        "0 if self.snapshot == MEAN else 0",
        UNION,
    ),
    Mutant("a comparison", "merging/selection.py", "end <= last_step)", "end < last_step)", SELECTION),
    Mutant(
        "the older of equals",
        "merging/weighting.py",
        "(losses[step], -step) for",
        "(losses[step], step) for",
        WEIGHTING,
    ),
    Mutant(
        "a mask turned round",
        "merging/weighting.py",
        "aware if decayed else plain",
        "plain if decayed else aware",
        WEIGHTING,
    ),
    Mutant(
        "off by one",
        "merging/weighting.py",
        "np.arange(window.start, window",
        "np.arange(window.start + 1, window",
        WEIGHTING,
    ),
    Mutant("a comparison", "merging/steps.py", "last - length < step", "last - length <= step", STEPS),
    Mutant("the first number of a name", "merging/steps.py", "int(found[-1])", "int(found[0])", STEPS),
    Mutant(
        "a mean counted often", "merging/recipe.py", "np.repeat(vector[:-1] / parts", "np.repeat(vector[:-1]", UNION
    ),
    Mutant("the end point first", "merging/spec.py", "one.item == PARAMS", "one.item != PARAMS", UNION),
    Mutant("a repeated input", "merging/spec.py", "np.add.at(wide, places, vector)", "wide[places] = vector", UNION),
    Mutant("inputs dropped", "merging/engine.py", "(table != 0).any(axis=0)", "(table != 0).all(axis=0)", OFFLINE),
    Mutant("first for last", "merging/engine.py", "[policy != FIRST]", "[policy == FIRST]", OFFLINE),
    Mutant(
        "the weights of another batch",
        "merging/engine.py",
        "task.weights[:, first : first + task.batch]",
        "task.weights[:, : len(batch)]",
        OFFLINE,
    ),
    Mutant(
        "the last merge is not made",
        "merging/offline.py",
        "range(0, len(names), together)",
        "range(0, len(names) - 1, together)",
        OFFLINE,
    ),
    Mutant("a blind verification", "merging/verification.py", "unit, tiny = 2.0**-24", "unit, tiny = 2.0**-8", FAULTS),
]

"""``wsm merge IN[:WEIGHT] ...``: checkpoints given one by one, or the steps in one folder, whoever wrote them."""

import argparse
import sys

from wsm_jax.checkpoints import storage
from wsm_jax.cli import merge_request
from wsm_jax.errors import UsageError
from wsm_jax.io import places
from wsm_jax.merging import inputs, provenance, weighting
from wsm_jax.merging import steps as steps_lib
from wsm_jax.merging.spec import MergeSpec

_WINDOW_OPTIONS = ("window", "count", "interval", "last_step")
_RUN_OPTIONS = ("every", "follow", "snapshot", "schedule", "like", "name")


def make_specs(options: argparse.Namespace) -> dict[str, MergeSpec]:
    """The merge of ``wsm merge IN[:WEIGHT] ... --output=OUT``, or of a window of the steps in one folder.

    Warns on stderr of what is unusual about weights and steps, and notes what is left out.

    Raises:
      UsageError: options that go with a run, inputs that are no checkpoints, weights that do not fit.
    """
    if not (options.output or options.explain):
        raise UsageError("wsm merge IN ... needs --output=OUT, or --explain, which writes nothing")
    for flag in _RUN_OPTIONS:
        if getattr(options, flag) is not None:
            hint = "; for other checkpoints give weights, IN:WEIGHT ..., that wsm_jax.schedule_weights computes"
            raise UsageError(f"--{flag} goes with --run" + (hint if flag in ("schedule", "like") else ""))
    if options.weight_decay_aware:
        raise UsageError(
            "--weight_decay_aware goes with --run, which knows rate, decay and mask; for other checkpoints give "
            "weights, IN:WEIGHT ..., that `wsm weights --weight_decay=...` computes"
        )
    rule = merge_request.changed(options, weighting.parse(options.curve or "mean"))
    given = [inputs.parse_input(text) for text in options.inputs]
    if any(getattr(options, flag) is not None for flag in _WINDOW_OPTIONS):
        given, items, notes = _window_of_folder(options, given)
    else:
        items, notes = [options.item] * len(given), _steps_beside(given)
    paths = [path for path, _ in given]
    has_curve = options.curve is not None
    if has_curve and not rule.is_uniform:
        inputs.check_order(paths)
    steps = steps_lib.common_steps(paths)
    if options.spacing == "true" and steps is None:
        raise UsageError("--spacing=true needs steps in the names of the inputs, of one series and oldest first")
    at = steps if options.spacing == "true" else None
    weights = inputs.input_weights(given, rule, has_curve=has_curve, steps=at)
    known = {"steps": steps} if steps else {}
    record = provenance.record(weights, curve=options.curve, **rule.changes, **known, output=str(options.output))
    output = merge_request.unused(options, places.at(options.output or "merged"))
    for note in notes:
        print(f"wsm: note: {note}", file=sys.stderr)
    merge_request.warn(inputs.uneven(steps, rule) if has_curve and at is None else None)
    merge_request.warn(inputs.negative(paths, weights))
    merge_request.warn(inputs.odd_sum(weight for _, weight in given if weight is not None))
    fields = {"output": output, "record": record, **merge_request.writing(options)}
    return {output.name: MergeSpec.of(paths, weights, items, **fields)}


def _window_of_folder(
    options: argparse.Namespace, given: list[tuple[str, float | None]]
) -> tuple[list[tuple[str, float | None]], list[str | None], list[str]]:
    """The checkpoints of the window that the options ask for in the one folder given, their items, what is left out."""
    flags = [f"--{flag}" for flag in _WINDOW_OPTIONS if getattr(options, flag) is not None]
    if len(given) > 1 or given[0][1] is not None:
        raise UsageError(f"{flags[0]} goes with --run=DIR or with one folder of checkpoints, without a weight")
    path = given[0][0]
    if (places.at(path) / "run.json").is_file():
        raise UsageError(f"{path} is a run: wsm merge --run={path} {' '.join(flags)}=...")
    folder = steps_lib.look_into(path, options.item)
    window = {flag: getattr(options, flag) for flag in _WINDOW_OPTIONS}
    chosen = steps_lib.choose(folder, **window)
    notes = [f"{path}/{name} is left out: it holds no complete checkpoint" for name in folder.left_out]
    paths = [folder.checkpoints[step] for step in chosen]
    # Where the item's name has chosen one of several folders inside a step, it is not one inside that folder.
    items = [None if path.parent != folder.path and path.name == options.item else options.item for path in paths]
    return [(str(path), None) for path in paths], items, notes


def _steps_beside(given: list[tuple[str, float | None]]) -> list[str]:
    """What to say of the steps inside inputs that are themselves models; inputs that hold steps alone are refused."""
    notes = [note for note in (_steps_inside(path) for path, _ in given) if note]
    more = f"; so are the steps in {len(notes) - 1} more of the inputs" if len(notes) > 1 else ""
    return [notes[0] + more] if notes else []


def _steps_inside(path: str) -> str | None:
    """What to say of the steps inside a folder that is itself a model; of one that is none, which is refused."""
    if not places.at(path).is_dir():
        return None
    is_model = storage.is_checkpoint(path)
    try:
        folder = steps_lib.look_into(path)
    except UsageError:
        if is_model:
            return None
        raise
    if not folder.checkpoints:
        return None
    first, *_, last = [*folder.checkpoints.values()] * 2
    if not is_model:
        raise UsageError(
            f"{path} is a folder of steps; it holds those of steps {min(folder.checkpoints)} to "
            f"{max(folder.checkpoints)}: add --count=N for the newest N, or name them, oldest first"
        )
    return f"{path} is merged itself; its steps, {first.name} to {last.name}, are left out (--count=N takes them)"

"""``wsm sft``: fine-tunes the parameters of a run or a merge on conversations."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wsm_jax.cli import config_flags
from wsm_jax.cli.arguments import whole
from wsm_jax.errors import UsageError
from wsm_jax.io import memory

if TYPE_CHECKING:
    from wsm_jax.checkpoints.run import Run
    from wsm_jax.config import Config

RATE_SHARE = 0.1  # of the peak rate of pre-training, where none is given


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument("--run", required=True, dest="directory", metavar="DIR", help="the run directory that it makes")
    sub.add_argument(
        "--params_from",
        required=True,
        metavar="RUN[@STEP]|PATH",
        help="what is fine-tuned: a run's newest checkpoint, that of a step, or the folder of a merge of a run",
    )
    sub.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="JSON lines with prompt and response, or with messages; a folder or a glob names several files",
    )
    sub.add_argument("--epochs", type=whole, default=1, metavar="N", help="passes over the conversations (default: 1)")
    sub.add_argument("--quiet", action="store_true", help="no progress bar, no messages")


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm sft``: a run like any other, whose configuration is that of the run it starts from, changed by flags."""
    memory.keep_heap()  # before the libraries begin their threads
    from wsm_jax.training.loop import train

    if options.epochs < 1:
        raise UsageError(f"--epochs={options.epochs} must be at least 1")
    if any(setting.split("=")[0] in ("--config", "--config.duration") for setting in settings):
        raise UsageError(
            "wsm sft takes the configuration of the run it starts from, changed by --config.FIELD=VALUE, and its "
            "duration from --epochs"
        )
    path, origin = _start(options.params_from)
    config = config_flags.changed(_tuned(origin, options.data), settings)
    config, line = _with_duration(config, options.epochs)
    if not options.quiet:
        print(line, file=sys.stderr, flush=True)
    train(config, options.directory, params_from=str(path), quiet=options.quiet)


def _start(text: str) -> tuple[Path, "Run"]:
    """The checkpoint that ``--params_from`` names, and the run whose model it is."""
    from wsm_jax.checkpoints import compatibility, orbax
    from wsm_jax.checkpoints.run import Run
    from wsm_jax.evaluation.evaluate import checkpoint_path
    from wsm_jax.io import places

    path, at, step = text.rpartition("@")
    if at and orbax.is_step(step):
        return checkpoint_path(run := Run(path), step=int(step)), run
    if (places.at(text) / "config.json").is_file():
        return checkpoint_path(run := Run(text)), run
    orbax.choose_item(text)
    if (origin := compatibility.origin_of(text)) is None:
        raise UsageError(f"--params_from={text} lies in no run, so its model is not known; merge within a run")
    return places.at(text), origin


def _tuned(origin: "Run", data: str) -> "Config":
    """The configuration of ``origin`` on other data, at a lower rate, without what belongs to its own course."""
    from wsm_jax.config import (
        AveragingConfig,
        CheckpointConfig,
        DataConfig,
        EvaluationConfig,
        LogConfig,
        PreviewConfig,
        ScheduleConfig,
    )
    from wsm_jax.evaluation.evaluate import tokenizer_place

    config, tokenizer = origin.config, origin.config.data.tokenizer
    if not Path(tokenizer).expanduser().exists():  # trained for the run, or the run was moved
        tokenizer = str(tokenizer_place(origin))
    return dataclasses.replace(
        config,
        duration="1steps",  # known once the conversations are packed
        data=DataConfig(source=f"chat:{data}", tokenizer=tokenizer, store=config.data.store),
        schedule=ScheduleConfig(),
        optimizer=dataclasses.replace(config.optimizer, peak_lr=RATE_SHARE * config.optimizer.peak_lr),
        checkpoint=CheckpointConfig(),
        averaging=AveragingConfig(),
        preview=PreviewConfig(),
        evaluation=EvaluationConfig(tokens=config.evaluation.tokens, batch_size=config.evaluation.batch_size),
        log=LogConfig(),
    )


def _with_duration(config: "Config", epochs: int) -> tuple["Config", str]:
    """``config`` with so many passes as its duration, and what there is to read, in words."""
    from wsm_jax.data import tokens
    from wsm_jax.data.packing import PackedRows

    (store, _), *others = tokens.prepare(config.data).stable
    if others:
        raise UsageError("wsm sft reads one source of conversations; --data takes a folder or a glob of several files")
    packed = PackedRows(store, config.model.context, config.seed)
    rows = packed.rows(epochs)
    steps = -(-rows // config.batch_size)
    count = store.manifest["splits"]["train"]["documents"]
    line = (
        f"{count:,} conversations in {packed.rows(1):,} rows of {config.model.context}, {packed.full:.0%} full; "
        f"{epochs} x {packed.rows(1) / config.batch_size:,.1f} steps of {config.batch_size} rows; of the conversations "
        f"{packed.left_out:,} are left out, as their prompt alone fills a row, and {packed.cut:,} are cut at its end; "
        f"peak rate {config.optimizer.peak_lr:g}"
    )
    return dataclasses.replace(config, duration=f"{steps}steps"), line

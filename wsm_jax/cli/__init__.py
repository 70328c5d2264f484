"""The command line, ``wsm VERB``: one file a verb, with its arguments (``add``) and what it does (``run``).

Heavy libraries are imported by the verbs that need them. Exit status: 0 done; 2 bad input (one line on stderr);
3 stopped at a NaN; 75 stopped by a signal, resumable; 130 interrupted before training.
"""

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from wsm_jax.cli import (
    config_flags,
    eval,
    export_model,
    extras,
    generate,
    import_model,
    inspect,
    merge,
    plan,
    prepare,
    quiet,
    report,
    sft,
    sweep,
    train,
    weights,
)
from wsm_jax.errors import UsageError, ended, meant

# Verb -> what adds its arguments, what runs it, whether it takes a configuration, its help.
VERBS = {
    "prepare": (
        prepare.add,
        prepare.run,
        True,
        "Read the documents, train or load the tokenizer, write the token store.",
    ),
    "train": (train.add, train.run, True, "Train a run, or go on with one that stopped."),
    "plan": (
        plan.add,
        plan.run,
        True,
        "Tell whether a run fits on chips that are not here, and how fast it can be; reads no documents.",
    ),
    "sft": (sft.add, sft.run, True, "Fine-tune a run's checkpoint or merge on conversations, responses alone."),
    "merge": (
        merge.add,
        merge.run,
        False,
        "Merge checkpoints given as IN[:WEIGHT] ..., or windows of a run's.",
    ),
    "weights": (weights.add, weights.run, False, "Print the merge weights of a decay curve or an average."),
    "inspect": (
        inspect.add,
        inspect.run,
        False,
        "Tell what a run, a checkpoint or a merge is, or with --hashes whether it is what was saved.",
    ),
    "eval": (
        eval.add,
        eval.run,
        False,
        "Loss of a run's checkpoint or merge on held-out documents, or what it scores on tasks.",
    ),
    "generate": (generate.add, generate.run, False, "Text after prompts, by a checkpoint or a merge of a run."),
    "import": (
        import_model.add,
        import_model.run,
        False,
        "Make a run of a public model, or of a series of its checkpoints.",
    ),
    "export": (
        export_model.add,
        export_model.run,
        False,
        "Write a checkpoint or a merge of a run as a folder that transformers loads.",
    ),
    "sweep": (
        sweep.add,
        sweep.run,
        True,
        "Many runs and merges from one file, side by side; what is done is skipped, what was cut goes on.",
    ),
    "report": (
        report.add,
        report.run,
        False,
        "Tables and figures of a constant-rate run beside its real decays; or all pages of experiments in one.",
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help tells more)")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"wsm-jax {importlib.metadata.version('wsm-jax')}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status, as :func:`wsm_jax.errors.ended` has it."""
    quiet.quiet()
    return ended("wsm", lambda: _run(sys.argv[1:] if arguments is None else list(arguments)))


def _run(arguments: list[str]) -> int:
    # --config.field=value belongs to ml_collections; argparse sees the rest.
    arguments = _joined(arguments)
    if (empty := next((a for a in arguments if re.fullmatch(r"(--[a-z_]+=)?\s*", a)), None)) is not None:
        raise UsageError(f"{empty.strip() or 'an argument'} is empty; give it a value, or leave it out")
    settings = [a for a in arguments if a.split("=")[0].split(".")[0] == "--config"]
    shown = settings if {"-h", "--help"} & set(arguments) else []
    options, unknown = _parser(shown).parse_known_args([a for a in arguments if a not in settings])
    if unknown:
        hint = _nearest(unknown[0], options)
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}{hint} (wsm {options.verb} --help tells more)")
    if settings and not options.takes_config:
        raise UsageError(f"wsm {options.verb} takes no {settings[0].split('=')[0]}")
    with extras.named(options.verb):
        return options.run(options, settings) or 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """``--config FILE`` and ``--config.FIELD VALUE`` with a ``=``, as argparse would take them."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1].split(".")[0] == "--config" and "=" not in joined[-1] and argument[:2] != "--":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _nearest(argument: str, options: argparse.Namespace) -> str:
    """Which option of the verb was probably meant by one that it does not have."""
    if not argument.startswith("-"):
        return ""
    known = re.findall(r"--(\w+)", options.usage())
    if options.takes_config:
        known += config_flags.names()
    return meant(argument.split("=")[0].lstrip("-").replace("-", "_"), known, "--")


def _parser(settings: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all verbs; the fields of the configuration are listed for the model family in ``settings``."""
    parser = _Parser(
        prog="wsm",
        description="Train at a constant rate, merge checkpoints, compare with a real decay.",
        epilog="wsm VERB --help tells more of a verb.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    for name, (add, run, takes_config, help) in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=help,
            description=help,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=config_flags.help_text(settings) if takes_config else None,
        )
        if takes_config:
            sub.add_argument_group("configuration").add_argument(
                "--config", metavar="FILE", help="a Python file with get_config(), e.g. configs/tiny.py"
            )
        sub.set_defaults(run=run, takes_config=takes_config, usage=sub.format_usage)
        add(sub)
    return parser

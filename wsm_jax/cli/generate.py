"""``wsm generate``: text after prompts, as it comes."""

import argparse
import dataclasses
import json
import sys
from typing import Any

from wsm_jax.cli.arguments import whole
from wsm_jax.errors import NonFiniteError, UsageError


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument("--run", required=True, dest="directory", metavar="DIR", help="the run directory")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--step", type=whole, metavar="S", help="a saved step (default: the newest)")
    which.add_argument("--merged", metavar="NAME|PATH", help="a merge of the run, or one that lies elsewhere")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="what the text goes on from")
    what.add_argument("--prompts", metavar="FILE", help="JSON lines with prompt, or with messages, .jsonl or .jsonl.gz")
    sub.add_argument("--chat", action="store_true", help="prompts are what a user says: by the model's chat template")
    sub.add_argument("--max_tokens", type=whole, default=128, metavar="N", help="of each text (default: 128)")
    sub.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="of the draws (default: 0, the likeliest token)"
    )
    sub.add_argument("--top_k", type=whole, default=0, metavar="K", help="draw from the K likeliest (default: all)")
    sub.add_argument(
        "--top_p", type=float, default=1.0, metavar="P", help="draw from the likeliest that sum to P (default: 1, all)"
    )
    sub.add_argument("--seed", type=whole, default=0, metavar="N", help="of the draws (default: 0)")
    sub.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="cut the text before this; may be given again"
    )
    sub.add_argument("--batch_size", type=whole, default=8, metavar="N", help="prompts at a time (default: 8)")
    sub.add_argument("--json", action="store_true", help="print a JSON line for each prompt when its text is whole")


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm generate``: all that can be bad is looked at before the weights are read."""
    from wsm_jax.checkpoints.run import Run
    from wsm_jax.evaluation import decode, generate, prompts
    from wsm_jax.evaluation import evaluate as evaluate_lib
    from wsm_jax.evaluation.sampling import Sampling
    from wsm_jax.parallel import mesh as mesh_lib

    if options.batch_size < 1:
        raise UsageError(f"batch_size is {options.batch_size}; it must be at least 1")
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    how = generate.Settings(options.max_tokens, sampling, tuple(options.stop))
    run = Run(options.directory)
    path = evaluate_lib.checkpoint_path(run, step=options.step, merged=options.merged)
    asked = prompts.read(options.prompts) if options.prompts else [options.prompt]
    tokenizer, template, how = _language(run, options.chat, how)
    encoded = prompts.encode(asked, tokenizer, template)
    model = evaluate_lib.model_of(run)
    prompts.check_fit(encoded, model.config.context)
    if options.merged:
        evaluate_lib.check_fits(run, path)
    mesh = mesh_lib.like(run.config.mesh)
    maker = decode.decoder(model, evaluate_lib.load(run, path), mesh, vocab_size=tokenizer.vocab_size)
    try:
        pieces = generate.stream(maker, tokenizer, encoded, how, options.batch_size)
        (_print_json if options.json else _print)(pieces, asked)
    except NonFiniteError as error:
        raise NonFiniteError(error.step, f"{path}: {error}") from error


def _language(run: Any, chat: bool, how: Any) -> tuple[Any, Any, Any]:
    """The tokenizer of a run, the chat template if it is wanted, and ``how`` with what ends an answer."""
    from wsm_jax.data import chat as chat_lib
    from wsm_jax.evaluation import language

    found = language.of(run)
    template = chat_lib.load_template(found.folders) if chat else None
    return found.tokenizer, template, dataclasses.replace(how, ends=found.ends)


def _print(pieces: Any, asked: list[Any]) -> None:
    """The texts one after the other; the first that is not whole yet as it comes."""
    waiting: dict[int, list[Any]] = {number: [] for number in range(len(asked))}
    for piece in pieces:
        waiting[piece.number].append(piece)
        for number in list(waiting):  # the first, and those that have waited for it
            for part in waiting[number]:
                sys.stdout.write(part.text + ("\n" if part.finish else ""))
            sys.stdout.flush()
            if not (waiting[number] and waiting[number][-1].finish):
                waiting[number] = []
                break
            del waiting[number]


def _print_json(pieces: Any, asked: list[Any]) -> None:
    """``prompt`` or ``messages``, ``text``, ``tokens`` (how many were made) and ``finish``, in the order of prompts."""
    texts, done, tokens = [""] * len(asked), {}, [0] * len(asked)
    told = 0
    for piece in pieces:
        texts[piece.number] += piece.text
        tokens[piece.number] += len(piece.tokens)
        if piece.finish:
            done[piece.number] = piece.finish
        while told in done:
            name = "prompt" if isinstance(asked[told], str) else "messages"
            found = {name: asked[told], "text": texts[told], "tokens": tokens[told], "finish": done[told]}
            print(json.dumps(found), flush=True)
            told += 1

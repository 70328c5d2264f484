"""``wsm inspect``: what a run, a checkpoint or a merge is."""

import argparse
import json

from wsm_jax.reporting.tables import listed, print_table


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    sub.add_argument("path", metavar="PATH", help="a run directory, an Orbax checkpoint or a safetensors folder")
    sub.add_argument("--item", help="item of an Orbax checkpoint (default: params, else the only one)")
    sub.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm inspect``: facts, leaves and the record of where it comes from."""
    from wsm_jax.checkpoints import inspection

    facts = inspection.inspect(options.path, options.item)
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    leaves, record = facts.pop("leaves", {}), facts.pop("record", {})
    if leaves:
        print_table(["leaf", "shape", "dtype"], [[name, str(x["shape"]), x["dtype"]] for name, x in leaves.items()])
    print_table(["fact", "value"], [[name, listed(value)] for name, value in facts.items()])
    inputs = record.pop("inputs", [])
    if inputs:
        columns = list(dict.fromkeys(name for entry in inputs for name in entry))
        print_table(columns, [[str(entry.get(name, "")) for name in columns] for entry in inputs], title="merged from")
    known = {name: value for name, value in record.items() if value not in (None, [], {})}
    if known:
        print_table(["recorded with it", "value"], [[name, listed(value)] for name, value in known.items()])

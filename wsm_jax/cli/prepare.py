"""``wsm prepare``: the token store of a configuration."""

import argparse

from wsm_jax.cli import config_flags
from wsm_jax.reporting.tables import print_table


def add(sub: argparse.ArgumentParser) -> None:
    """Adds the arguments of the verb."""
    del sub  # it takes a configuration only


def run(options: argparse.Namespace, settings: list[str]) -> None:
    """``wsm prepare``: the token store of a configuration, with a line for each source and split."""
    config = config_flags.load(settings)
    from wsm_jax.data import tokens

    corpus = tokens.prepare(config.data, progress=True)
    stores = {store.hash: store for store, _ in [*corpus.stable, *corpus.switch]}.values()
    rows = [
        [store.manifest["source"], split, f"{n['documents']:,}", f"{n['tokens']:,}", f"{n['bytes']:,}"]
        for store in stores
        for split, n in store.manifest["splits"].items()
    ]
    print_table(["source", "split", "documents", "tokens", "UTF-8 bytes"], rows, title=f"data {corpus.hash[:12]}")

"""The options of ``wsm merge`` as its tests ask for them."""

import argparse

from wsm_jax import cli


def asked(*arguments: object) -> argparse.Namespace:
    """The parsed options of ``wsm merge``."""
    return cli._parser().parse_args(["merge", *map(str, arguments)])

"""Kinds of arguments that several verbs share."""

import argparse


def filled(text: str) -> str:
    """An argument that is given and not empty, as ``--run=$RUN`` is where the shell knows no RUN.

    Raises:
      argparse.ArgumentTypeError: nothing but spaces.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; give a value, or leave the option out")
    return text

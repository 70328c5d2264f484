"""Kinds of arguments that several verbs share."""

import argparse
import re


def whole(text: str) -> int:
    """A whole number of at most 18 digits: longer ones are slips, with which a loop would not end.

    Raises:
      argparse.ArgumentTypeError: anything else; argparse names the option.
    """
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at most 18 digits")
    return int(text)

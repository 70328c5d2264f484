"""Numbers on the command line."""

import re


def whole(text: str) -> int:
    """A whole number of at most 18 digits: longer ones are slips, with which a loop would not end.

    Raises:
      ValueError: anything else; argparse names the option.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
        raise ValueError(text)
    return int(text)

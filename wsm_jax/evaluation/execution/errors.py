"""What goes wrong with a sandbox itself, never with a program in it."""


class Unusable(RuntimeError):
    """A mechanism does not work here; the text says why. No program is judged by it."""

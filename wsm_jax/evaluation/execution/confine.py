"""The part of a sandbox that is inside: it gives up what a process may do, once and for good, then runs a program.

Its text is given to a bare interpreter, so it imports the standard library alone. Standard input holds the order:

    {"program": text, "secret": text, "verdict": file descriptor, "limits": {"RLIMIT_…": bytes or seconds or number},
     "user": of its own for root, "calls": hex of a filter, "landlock": {path: whether to write there}, or null,
     "parent": process whose death ends this one, or null}

Three steps cannot be undone: another user (where this one is root), Landlock, and the filter of system calls. After
them ``ready`` is written to the verdict, and at the end the secret where the program ended by itself, or else what it
raised. A program that leaves early writes neither.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import types

NOBODY = 65534
_SET_PARENT_DEATH, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 1, 22, 38  # of prctl
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # Landlock's system calls, by the same numbers on every architecture
# Landlock's rights on files: to execute (never given), write, read, list, remove and make; 14 is to truncate.
_WRITE, _READ, _LIST, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_REMOVE_AND_MAKE = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13  # folders and plain files, and to move them

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function, *arguments):
    """A call of the C library whose integers are long; OSError where it fails."""
    result = function(*(ctypes.c_long(value) if isinstance(value, int) else value for value in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{function.__name__}{arguments[:2]}: {os.strerror(ctypes.get_errno())}")
    return result


def landlock_version():
    """The ABI of Landlock that the kernel has; 0 where it has none."""
    return max(0, _libc.syscall(ctypes.c_long(_CREATE), None, ctypes.c_long(0), ctypes.c_long(1)))


def become(user):
    """Another user with a group of the same number, to whom the folder at hand belongs from now on."""
    for number in (user, NOBODY):  # in a container the first may not exist
        try:
            os.chown(".", number, number)
            os.setgroups([])
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
        except OSError as error:
            if number == NOBODY:
                raise OSError(error.errno, f"cannot become another user: {error.strerror}") from error


def limit(limits):
    """Sets limits, or keeps those that are lower."""
    for name, value in limits.items():
        which = getattr(resource, name)
        highest = resource.getrlimit(which)[1]
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(which, (value, value))


def allow(paths):
    """Landlock: nothing but these may be opened, no port be used, and nobody outside be signalled."""
    version = landlock_version()
    every = (1 << (16 if version >= 5 else 15)) - 1
    handled = struct.pack("QQQ", every, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _call(_libc.syscall, _CREATE, handled, len(handled), 0)
    for path, writes in paths.items():
        place = os.open(path, os.O_PATH)
        rights = _READ | (_WRITE | _TRUNCATE if writes else 0)
        if os.path.isdir(path):
            rights |= _LIST | (_REMOVE_AND_MAKE if writes else 0)
        _call(_libc.syscall, _ADD, rules, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    _call(_libc.syscall, _RESTRICT, rules, 0)
    os.close(rules)


def filter_calls(code):
    """Installs a program of BPF, which says of every system call from now on whether it is made."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    program = Program(len(code) // 8, code)
    _call(_libc.prctl, _SET_SECCOMP, 2, ctypes.byref(program), 0, 0)


def confine(order):
    """Gives up everything but what the program needs."""
    os.environ.clear()
    if os.getuid() == 0:
        become(order["user"])
    _call(_libc.prctl, _SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call(_libc.prctl, _SET_PARENT_DEATH, int(signal.SIGKILL), 0, 0, 0)
    if order["parent"] not in (None, os.getppid()):
        os._exit(1)  # it died before it could be told of
    limit(order["limits"])
    if order["landlock"] is not None:
        allow(order["landlock"])
    filter_calls(bytes.fromhex(order["calls"]))


def run(program, secret):
    """The secret where the program ends by itself, or else what it raises."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
        sys.stdout.flush()
    except BaseException as error:  # SystemExit too: what leaves early has not passed
        try:
            return f"{type(error).__name__}: {error}"[:500]
        except BaseException:
            return type(error).__name__
    return secret


def main():
    """One program."""
    order = json.load(sys.stdin)
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)  # the order holds the secret
    confine(order)
    os.write(order["verdict"], b"ready\n")
    os.write(order["verdict"], run(order["program"], order["secret"]).encode(errors="replace"))
    os._exit(0)  # threads of the program may still run


if __name__ == "__main__":
    main()

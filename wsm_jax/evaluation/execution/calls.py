"""Which system calls a program may make: those that compute, and read and write what is open to it.

None of them starts a process, opens a socket, sends a signal, or changes owners, permissions, mounts or limits of
others. All that is not named here, and so every call that a later kernel adds, fails as if the kernel did not know it.
"""

import ctypes
import errno
import functools
import tempfile
from collections.abc import Sequence

from wsm_jax.evaluation.execution.errors import Unusable

ALLOWED = """
read write readv writev pread64 pwrite64 open openat close close_range lseek stat lstat fstat newfstatat statx statfs
fstatfs access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir
unlink unlinkat rename renameat renameat2 truncate ftruncate fsync fdatasync fadvise64 flock dup dup2 dup3 pipe pipe2
umask sendfile copy_file_range
brk mmap munmap mprotect mremap madvise msync membarrier
clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getitimer setitimer alarm pause
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall
getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid getpriority
getrusage getrlimit uname sysinfo getcpu sched_getaffinity sched_yield wait4 waitid
futex futex_waitv set_robust_list get_robust_list set_tid_address rseq arch_prctl exit exit_group
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
getrandom sendto recvfrom shutdown
""".split()

_THREAD = 0x10000
_DUP, _GETFD, _SETFD, _GETFL, _SETFL, _DUP_CLOEXEC, _PIPE_SIZE = 0, 1, 2, 3, 4, 1030, 1032
_TCGETS, _WINDOW, _READABLE, _NONBLOCKING, _NO_CLOEXEC, _CLOEXEC = 0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451
_SET_NAME, _GET_NAME, _NAME_MEMORY = 15, 16, 0x53564D41
_STREAM, _ALL = 1, 0xFFFFFFFF
# Call -> (argument, mask, values): made only where the argument under the mask is one of the values.
# clone: threads alone. fcntl: not to choose who gets signals. socketpair: streams, which cannot be sent elsewhere.
WITH_ARGUMENT: dict[str, tuple[int, int, Sequence[int]]] = {
    "clone": (0, _THREAD, [_THREAD]),
    "fcntl": (1, _ALL, [_DUP, _GETFD, _SETFD, _GETFL, _SETFL, _DUP_CLOEXEC, _PIPE_SIZE]),
    "ioctl": (1, _ALL, [_TCGETS, _WINDOW, _READABLE, _NONBLOCKING, _NO_CLOEXEC, _CLOEXEC]),
    "prctl": (0, _ALL, [_SET_NAME, _GET_NAME, _NAME_MEMORY]),
    "prlimit64": (0, _ALL, [0]),
    "socketpair": (1, 0xF, [_STREAM]),
}

_ALLOW, _UNKNOWN = 0x7FFF0000, 0x00050000 | errno.ENOSYS
_MASKED_EQUAL = 7


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """libseccomp.

    Raises:
      Unusable: it is not installed.
    """
    try:
        found = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise Unusable("libseccomp.so.2 is missing (apt install libseccomp2, dnf install libseccomp)") from error
    found.seccomp_init.restype = ctypes.c_void_p
    found.seccomp_init.argtypes = [ctypes.c_uint32]
    found.seccomp_release.argtypes = [ctypes.c_void_p]
    found.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    ]
    found.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    found.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return found


def version() -> str:
    """Of libseccomp: ``2.5.4``."""
    return ".".join(map(str, library().seccomp_version().contents))


@functools.cache
def compiled() -> bytes:
    """The filter as the kernel takes it, for this machine's architecture: instructions of BPF, 8 bytes each.

    Raises:
      Unusable: libseccomp is missing or refuses.
    """
    lib = library()
    rules = lib.seccomp_init(_UNKNOWN)
    if not rules:
        raise Unusable("libseccomp does not know this architecture")
    try:
        for name in ALLOWED:
            _add(rules, name)
        for name, (argument, mask, values) in WITH_ARGUMENT.items():
            for value in values:
                _add(rules, name, _Comparison(argument, _MASKED_EQUAL, mask, value))
        with tempfile.TemporaryFile() as file:
            if lib.seccomp_export_bpf(rules, file.fileno()):
                raise Unusable("libseccomp cannot write its filter")
            file.seek(0)
            return file.read()
    finally:
        lib.seccomp_release(rules)


def _add(rules: int, name: str, *where: _Comparison) -> None:
    number = library().seccomp_syscall_resolve_name(name.encode())
    if number < 0:  # not on this architecture, or newer than the library
        return
    if library().seccomp_rule_add_array(rules, _ALLOW, number, len(where), (_Comparison * len(where))(*where)):
        raise Unusable(f"libseccomp does not take a rule for {name}")

"""What a training process on a CPU finds in its environment."""

# XLA:CPU makes and frees its temporaries at every update. With one heap that is never given back no page is new after
# the first updates; otherwise page faults cost a fifth of the time (benchmarks/train_step.py).
KEPT_HEAP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.arena_max=1"

"""Memory that was used once is used again. Tensors of a training step come and go by the gigabyte, and on a CPU fresh pages from the kernel cost
more time than the arithmetic on them; peak memory stays what it is.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """For the whole process: freed memory stays with it, and torch asks for large pages. Call before torch allocates; a no-op without glibc."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(M_MMAP_MAX, 0)  # large blocks from the heap too
    mallopt(M_TRIM_THRESHOLD, -1)  # which is never handed back

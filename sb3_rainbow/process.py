"""What the process is told, so that updates on the CPU are fast."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th


def keep_freed_memory() -> None:
    """
    Batches and updates free tens of megabytes and take them again. glibc would give them back to the system each time, and
    fetch them page by page, a tenth of an update's time. It keeps twice the size of the largest block ever freed: 64 MB now.
    """
    th.empty(2**25 - 2**16, dtype=th.uint8)


@contextmanager
def flush_denormals() -> Iterator[None]:
    """
    Numbers below float32's least normal one, 1.2e-38, count as zero inside, in this thread and in those it starts. Where a
    unit has died, or an atom's probability has, Adam's means fall that low and stay (0.9 of the least number rounds to
    itself), and the CPU is many times slower with them.

    :return: for ``with``, or for a function as ``@flush_denormals()``
    """
    before = bool(np.float32(1e-40) * np.float32(1) == 0)  # torch does not tell
    th.set_flush_denormal(True)
    try:
        yield
    finally:
        th.set_flush_denormal(before)

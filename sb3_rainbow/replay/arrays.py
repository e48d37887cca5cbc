"""
Arrays of the replay: NumPy's on the CPU, torch's on CUDA.

Code on them is written once, in the part of the array API that both share. On a CPU, a sample is some forty small
operations, and NumPy's cost half of torch's.
"""

import contextlib
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch as th

#: A NumPy array on the CPU, a torch tensor on CUDA
Array = Any


def on_numpy(device: th.device) -> bool:
    """
    :param device: where arrays are
    :return: whether they are NumPy's
    """
    return device.type == "cpu"


def namespace(array: Array) -> ModuleType:
    """
    :param array: any array
    :return: the module whose functions work on it: ``numpy`` or ``torch``
    """
    return np if isinstance(array, np.ndarray) else th


def allocate(shape: tuple[int, ...], dtype: npt.DTypeLike, device: th.device) -> Array:
    """
    :param shape: shape of the array
    :param dtype: NumPy's dtype
    :param device: where it is to be
    :return: an array of zeros. On the CPU, what is never touched takes no memory
    """
    zeros = np.zeros(shape if on_numpy(device) else 0, dtype)
    return zeros if on_numpy(device) else th.zeros(shape, dtype=th.from_numpy(zeros).dtype, device=device)


def device_at_hand(device: th.device | str) -> th.device:
    """
    :param device: where arrays shall be
    :return: it, or the CPU for a GPU that this machine does not have
    """
    device = th.device(device)
    return th.device("cpu") if device.type == "cuda" and (device.index or 0) >= th.cuda.device_count() else device


def available_memory(device: th.device) -> int:
    """
    :param device: any
    :return: bytes that can still be allocated there
    """
    if device.type == "cuda":
        free, _ = th.cuda.mem_get_info(device)
        return int(free + th.cuda.memory_reserved(device) - th.cuda.memory_allocated(device))
    return int(min(psutil.virtual_memory().available, left_in_container()))


def left_in_container(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """
    What a container, or a job of a cluster, lets its processes take: Linux's control groups, version 2, tell it.

    :param root: where they are
    :param own: file that names this process's, like ``0::/job_7/step_0``
    :return: bytes that can still be allocated by the tightest of the groups around this process; infinite without limits
    """
    left = math.inf
    with contextlib.suppress(OSError):
        group = root / own.read_text().rpartition("0::/")[2].strip()
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # there is no such file, or no limit
                most, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
                # Files that were read count as used, and are dropped when memory is short
                cached = re.findall(r"^(?:in)?active_file (\d+)", (folder / "memory.stat").read_text(), re.M)
                left = min(left, most - used + sum(map(int, cached)))
    return left


def check_memory(buffer_size: int, needed: int, device: th.device) -> None:
    """
    :param buffer_size: most transitions kept, for the message
    :param needed: bytes that are to be allocated
    :param device: where
    :raises MemoryError: if they will not fit; it says what is needed and what there is
    """
    available = available_memory(device)
    if needed > available:
        raise MemoryError(
            f"buffer_size={buffer_size}: the replay buffer needs {needed / 2**30:.2f} GiB "
            f"on {device}, where {available / 2**30:.2f} GiB are available"
        )


def to_array(values: Any, device: th.device) -> Array:
    """
    :param values: array or tensor, anywhere
    :param device: where it is to be
    :return: the values as an array there, not copied if they are there
    """
    if not on_numpy(device):
        return th.as_tensor(values, device=device).detach()
    return values.detach().cpu().numpy() if isinstance(values, th.Tensor) else np.asarray(values)


def to_numpy(array: Array) -> np.ndarray:
    """
    :param array: any array
    :return: NumPy's, not copied if it was
    """
    return array.cpu().numpy() if isinstance(array, th.Tensor) else array


def take(array: Array, indices: Array) -> Array:
    """
    :param array: any array
    :param indices: of its first axis, any shape
    :return: ``array[indices]``, by the fastest way
    """
    return array.take(indices, 0) if isinstance(array, np.ndarray) else array[indices]


def to_tensor(array: Array) -> th.Tensor:
    """
    :param array: any array
    :return: torch's, not copied
    """
    return th.from_numpy(array) if isinstance(array, np.ndarray) else array


class Uniform:
    """
    Uniform random numbers from a generator of its own.

    :param device: where the numbers are drawn
    :param seed: seed of the generator
    """

    def __init__(self, device: th.device, seed: int) -> None:
        self._device = device
        #: NumPy's on the CPU, torch's on CUDA
        self.generator: Any = None if on_numpy(device) else th.Generator(device=device)
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """
        :param seed: restarts the generator; not negative
        """
        if on_numpy(self._device):
            self.generator = np.random.default_rng(seed)
        else:
            self.generator.manual_seed(seed)

    def draw(self, n: int) -> Array:
        """
        :param n: how many
        :return: ``[n]`` float64, in [0, 1)
        """
        if on_numpy(self._device):
            return self.generator.random(n)
        return th.rand(n, dtype=th.float64, device=self._device, generator=self.generator)

    def state(self) -> Any:
        """:return: state of the generator"""
        if on_numpy(self._device):
            return self.generator.bit_generator.state
        return self.generator.get_state().numpy()

    def load_state(self, state: Any) -> None:
        """
        :param state: what ``state()`` returned, on a device of the same type
        """
        if on_numpy(self._device):
            self.generator.bit_generator.state = state
        else:
            self.generator.set_state(th.as_tensor(state))

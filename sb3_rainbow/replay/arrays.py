"""
Arrays of the replay: NumPy's on the CPU, torch's on CUDA.

Code on them is written once, in the part of the array API that both share. On a CPU, a sample is some forty small
operations, and NumPy's cost half of torch's.
"""

from types import ModuleType
from typing import Any

import numpy as np
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


def allocate(shape: tuple[int, ...], dtype: np.dtype, device: th.device) -> Array:
    """
    :param shape: shape of the array
    :param dtype: NumPy's dtype
    :param device: where it is to be
    :return: an array of zeros. On the CPU, what is never touched takes no memory
    """
    zeros = np.zeros(shape if on_numpy(device) else 0, dtype)
    return zeros if on_numpy(device) else th.zeros(shape, dtype=th.from_numpy(zeros).dtype, device=device)


def available_memory(device: th.device) -> int:
    """
    :param device: any
    :return: bytes that can still be allocated there
    """
    return int(th.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


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

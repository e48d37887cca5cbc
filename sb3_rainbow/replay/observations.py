"""Observations of any space SB3 knows: every entry of a dict has a store of its own, images one that shares frames."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_rainbow.replay.arrays import Array, allocate, check_memory, take, to_array, to_numpy
from sb3_rainbow.replay.frames import FrameStore, count_rows, find_stack, likely_depth

Obs = np.ndarray | dict[str, np.ndarray]
#: An observation as it is stored
ArrayObs = Array | dict[str, Array]
#: Stack axis and depth of every image entry
Stacks = dict[str, tuple[int, int]]


def as_shape(name: str, value: Any, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """
    :param name: name of the argument
    :param value: what was given
    :param dtype: dtype of the result
    :param shape: shape of the result; ``value`` may have axes of length 1 more or less
    :return: the value as an array
    :raises ValueError: if it has another shape
    """
    array = np.asarray(value, dtype)
    if array.shape != shape:
        if [size for size in array.shape if size != 1] != [size for size in shape if size != 1]:
            raise ValueError(f"{name} has the shape {array.shape}: must be {shape}")
        array = array.reshape(shape)
    return array


class ArrayStore:
    """
    Observations that are not images: ``obs`` and ``next_obs`` side by side, as SB3's ``ReplayBuffer`` keeps them.

    :param n_slots: slots of the ring
    :param n_envs: number of environments
    :param shape: shape of one observation
    :param dtype: dtype of the observations
    :param device: where they are stored
    """

    def __init__(self, n_slots: int, n_envs: int, shape: tuple[int, ...], dtype: np.dtype, device: th.device) -> None:
        self._n_envs, self._device = n_envs, device
        self._obs = allocate((n_slots * n_envs, *shape), dtype, device)
        self._next_obs = allocate((n_slots * n_envs, *shape), dtype, device)

    @property
    def arrays(self) -> list[Array]:
        """All that observations are made from."""
        return [self._obs, self._next_obs]

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        return int(2 * self._obs.nbytes)

    def add(self, slot: int, obs: np.ndarray, next_obs: np.ndarray) -> None:
        """
        Store one transition of every environment.

        :param slot: where in the ring
        :param obs: ``[n_envs, *shape]``
        :param next_obs: ``[n_envs, *shape]``
        """
        leaves = slice(slot * self._n_envs, (slot + 1) * self._n_envs)
        self._obs[leaves] = to_array(obs, self._device)
        self._next_obs[leaves] = to_array(next_obs, self._device)

    def get(self, leaf_indices: Array, last_leaves: Array) -> tuple[Array, Array]:
        """
        Observations of some leaves, next observations of others (those where the n-step windows end).

        :param leaf_indices: ``[batch]`` int64
        :param last_leaves: ``[batch]`` int64
        :return: two arrays ``[batch, *shape]``
        """
        return take(self._obs, leaf_indices), take(self._next_obs, last_leaves)

    def state(self, n_leaves: int) -> dict[str, Any]:
        """
        :param n_leaves: how many leaves have been written
        :return: what they hold; arrays are NumPy's
        """
        return {"obs": to_numpy(self._obs[:n_leaves]), "next_obs": to_numpy(self._next_obs[:n_leaves])}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: what ``state()`` returned
        """
        n_leaves = len(state["obs"])
        self._obs[:n_leaves] = to_array(state["obs"], self._device)
        self._next_obs[:n_leaves] = to_array(state["next_obs"], self._device)


class ObservationStore:
    """
    Stores the observations and next observations of all transitions.

    :param space: observation space
    :param n_slots: slots of the ring of transitions
    :param n_envs: number of environments
    :param device: where they are stored
    """

    def __init__(self, space: spaces.Space[Any], n_slots: int, n_envs: int, device: th.device) -> None:
        self._is_dict = isinstance(space, spaces.Dict)
        # An observation that is no dict is one with the single key ""
        entries = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self._entries: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            key: (tuple(map(int, get_obs_shape(entry))), np.dtype(entry.dtype)) for key, entry in entries.items()
        }
        self._n_slots, self._n_envs, self._device = n_slots, n_envs, device
        self._stores: dict[str, ArrayStore | FrameStore] = {}

    @property
    def allocated(self) -> bool:
        """Whether storage has been allocated."""
        return bool(self._stores)

    @property
    def arrays(self) -> list[Array]:
        """All that observations are made from."""
        return [array for store in self._stores.values() for array in store.arrays]

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(store.nbytes for store in self._stores.values())

    def estimate_memory(
        self, stacks: Stacks | None = None, n_stack: int | None = None, episode_length: float = math.inf
    ) -> int:
        """
        :param stacks: axis and depth of image entries, as far as they are known; None for those that are stored
        :param n_stack: depth of the others; None for what the channels suggest
        :param episode_length: mean length of an episode, in steps
        :return: bytes of a full store
        """
        if stacks is None:
            frames = {key: store for key, store in self._stores.items() if isinstance(store, FrameStore)}
            stacks = {key: (store.stack_axis, store.n_stack) for key, store in frames.items()}
        total = 0
        for key, (shape, dtype) in self._entries.items():
            nbytes = math.prod(shape) * dtype.itemsize
            if len(shape) < 3:
                total += 2 * self._n_slots * self._n_envs * nbytes
                continue
            depth = stacks[key][1] if key in stacks else n_stack or likely_depth(shape)
            total += count_rows(self._n_slots, self._n_envs, depth, episode_length) * nbytes // depth
            total += self._n_slots * (self._n_envs * (depth + 1) * 4 + 4)
        return total

    def to_entries(self, name: str, obs: Obs) -> dict[str, np.ndarray]:
        """
        :param name: what the argument is called
        :param obs: ``[n_envs, *shape]``, or a dict of those
        :return: the same as a dict, every array of its dtype and shape
        :raises ValueError: if one has the wrong shape, or is missing
        """
        given = obs if isinstance(obs, dict) else {"": obs}
        if isinstance(obs, dict) != self._is_dict or given.keys() != self._entries.keys():
            raise ValueError(
                f"{name}={sorted(obs) if isinstance(obs, dict) else type(obs).__name__}: must be "
                f"{f'a dict of {sorted(self._entries)}' if self._is_dict else 'an array'}"
            )
        return {
            key: as_shape(f"{name}[{key!r}]" if key else name, given[key], dtype, (self._n_envs, *shape))
            for key, (shape, dtype) in self._entries.items()
        }

    def allocate(self, obs: dict[str, np.ndarray], next_obs: dict[str, np.ndarray], done: np.ndarray, others: int) -> None:
        """
        Make a store for every entry, if they will all fit.

        :param obs: entries of the first observations, to see which are stacks
        :param next_obs: entries of the next ones
        :param done: ``[n_envs]`` bool: where ``next_obs`` may belong to another episode
        :param others: bytes that the rest of the buffer needs
        :raises MemoryError: if they will not; it says what is needed and what there is
        """
        on = ~done
        stacks = {k: find_stack(obs[k][on], next_obs[k][on]) for k, (shape, _) in self._entries.items() if len(shape) >= 3}
        # Where nothing moves, a stack is a guess, and may save less
        known = {key: stack for key, stack in stacks.items() if not np.array_equal(obs[key][on], next_obs[key][on])}
        check_memory(self._n_slots * self._n_envs, self.estimate_memory(known) + others, self._device)
        self._make_stores(stacks)

    def add(self, slot: int, obs: dict[str, np.ndarray], next_obs: dict[str, np.ndarray]) -> None:
        """
        Store one transition of every environment.

        :param slot: where in the ring
        :param obs: entries of the observations
        :param next_obs: entries of the next observations
        """
        for key, store in self._stores.items():
            store.add(slot, obs[key], next_obs[key])

    def get(self, leaf_indices: Array, last_leaves: Array) -> tuple[ArrayObs, ArrayObs]:
        """
        Observations of some leaves, next observations of others (those where the n-step windows end).

        :param leaf_indices: ``[batch]`` int64
        :param last_leaves: ``[batch]`` int64
        :return: two arrays ``[batch, *shape]``, or two dicts of those
        """
        pairs = {key: store.get(leaf_indices, last_leaves) for key, store in self._stores.items()}
        if not self._is_dict:
            return pairs[""]
        return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}

    def state(self, n_leaves: int) -> dict[str, Any]:
        """
        :param n_leaves: how many leaves have been written
        :return: what they hold; arrays are NumPy's
        """
        return {key: store.state(n_leaves) for key, store in self._stores.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: what ``state()`` returned, for the same space, slots and environments
        """
        if not state:  # nothing was added before it was saved
            return
        self._make_stores({key: entry["stack"] for key, entry in state.items() if "stack" in entry})
        for key, entry in state.items():
            self._stores[key].load_state(entry)

    def _make_stores(self, stacks: Stacks) -> None:
        for key, (shape, dtype) in self._entries.items():
            size = (self._n_slots, self._n_envs, shape, dtype)
            if key in stacks:
                self._stores[key] = FrameStore(*size, stacks[key], self._device)
            else:
                self._stores[key] = ArrayStore(*size, self._device)

"""What the replay keeps of each transition beside its observations: action, reward, and how it ended."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from sb3_rainbow.replay.arrays import Array, allocate, take, to_array, to_numpy
from sb3_rainbow.replay.n_step import NStepReturns, Windows, make_windows, n_step_returns

_ARRAYS = ("actions", "rewards", "goes_on", "terminated")


class TransitionStore:
    """
    A ring of slots, each with one leaf per environment: leaf ``slot * n_envs + env``.

    :param n_slots: slots of the ring
    :param n_envs: number of environments
    :param action_dim: numbers in an action
    :param action_dtype: dtype of actions
    :param device: where they are stored
    """

    def __init__(self, n_slots: int, n_envs: int, action_dim: int, action_dtype: np.dtype, device: th.device) -> None:
        self._n_slots, self._n_envs, self._device = n_slots, n_envs, device
        n_leaves = n_slots * n_envs
        #: ``[leaves, action_dim]``
        self.actions = allocate((n_leaves, action_dim), action_dtype, device)
        #: ``[leaves]`` float32: of single steps, raw
        self.rewards = allocate((n_leaves,), np.float32, device)
        #: ``[leaves]`` uint8: 1 where the episode goes on in the next slot: not where it ended, nor for the newest transitions
        self.goes_on = allocate((n_leaves,), np.uint8, device)
        #: ``[leaves]`` float32: 1 where the episode ended by a termination
        self.terminated = allocate((n_leaves,), np.float32, device)
        #: ``[n_envs]`` bool: which of the newest transitions did not end their episode
        self.running = np.zeros(n_envs, dtype=bool)
        # Of the last length and discount
        self._windows: dict[tuple[int, float], Windows] = {}

    @staticmethod
    def bytes_per_leaf(action_dim: int, action_dtype: np.dtype) -> int:
        """
        :param action_dim: numbers in an action
        :param action_dtype: dtype of actions
        :return: bytes
        """
        return action_dim * action_dtype.itemsize + 4 + 1 + 4

    @property
    def arrays(self) -> list[Array]:
        """All that transitions are made from."""
        stored = [getattr(self, name) for name in _ARRAYS]
        return stored + [array for windows in self._windows.values() for array in windows]

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(int(array.nbytes) for array in self.arrays)

    def add(self, slot: int, action: np.ndarray, reward: np.ndarray, terminated: np.ndarray, done: np.ndarray) -> slice:
        """
        Store one transition of every environment.

        :param slot: where in the ring: the one after the last
        :param action: ``[n_envs, action_dim]``
        :param reward: ``[n_envs]``
        :param terminated: ``[n_envs]`` bool
        :param done: ``[n_envs]`` bool: terminated or truncated
        :return: its leaves
        """
        before, leaves = self._leaves_of(slot - 1), self._leaves_of(slot)
        self.actions[leaves] = to_array(action, self._device)
        self.rewards[leaves] = to_array(reward, self._device)
        self.terminated[leaves] = to_array(terminated, self._device)
        self.goes_on[before] = to_array(self.running, self._device)
        self.goes_on[leaves] = 0
        self.running = ~done
        return leaves

    def close(self) -> None:
        """End the running episodes, as truncations would."""
        self.running = np.zeros(self._n_envs, dtype=bool)

    def get(
        self,
        leaf_indices: Array,
        n_steps: int,
        gamma: float,
        normalize_reward: Callable[[Array], Array] | None = None,
    ) -> tuple[Array, NStepReturns]:
        """
        :param leaf_indices: ``[batch]`` int64
        :param n_steps: longest window
        :param gamma: discount of one step
        :param normalize_reward: see ``n_step_returns``
        :return: actions, and what the windows that start there give
        """
        if (n_steps, gamma) not in self._windows:
            self._windows = {(n_steps, gamma): make_windows(n_steps, gamma, self._n_envs, self.rewards)}
        windows = self._windows[n_steps, gamma]
        returns = n_step_returns(self.rewards, self.goes_on, self.terminated, leaf_indices, windows, normalize_reward)
        return take(self.actions, leaf_indices), returns

    def state(self, n_leaves: int) -> dict[str, Any]:
        """
        :param n_leaves: how many leaves have been written
        :return: what they hold; arrays are NumPy's
        """
        return {name: to_numpy(getattr(self, name)[:n_leaves]) for name in _ARRAYS} | {"running": self.running}

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: what ``state()`` returned, for the same slots and environments
        """
        self.running = state["running"].copy()
        for name in _ARRAYS:
            getattr(self, name)[: len(state[name])] = to_array(state[name], self._device)

    def _leaves_of(self, slot: int) -> slice:
        start = slot % self._n_slots * self._n_envs
        return slice(start, start + self._n_envs)

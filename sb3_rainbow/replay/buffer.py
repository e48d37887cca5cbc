"""The replay buffer: SB3's interface over observations, n-step returns and priorities."""

import math
from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.vec_env import VecNormalize

from sb3_rainbow.arguments import check_choice, check_integer, check_number, check_seed, check_storage_device
from sb3_rainbow.process import keep_freed_memory
from sb3_rainbow.replay.arrays import Array, available_memory, check_memory, device_at_hand, to_array, to_numpy, to_tensor
from sb3_rainbow.replay.observations import ArrayObs, Obs, ObservationStore, as_shape
from sb3_rainbow.replay.priorities import PrioritySampler
from sb3_rainbow.replay.transitions import TransitionStore
from sb3_rainbow.type_aliases import PrioritizedReplayBufferSamples

_ROOMS = ("_transitions", "_observations", "_priorities")


class PrioritizedNStepReplayBuffer(ReplayBuffer):
    r"""
    Replay buffer with prioritized sampling (PER, https://arxiv.org/abs/1511.05952), n-step returns made when sampling,
    and image frames stored once.

    A *slot* is a position of the ring, a *leaf* one (slot, environment) pair: leaf ``slot * n_envs + env`` holds one
    transition and has its own priority. Rewards are stored raw; VecNormalize's normalisation is applied to each of them before
    they are summed. Dict observations work, every entry is stored by itself.

    Observations are allocated by the first ``add``. All else, 25 bytes of a transition if the action is discrete, is allocated
    when the buffer is made.

    :param buffer_size: most transitions kept, over all environments
    :param observation_space: observation space
    :param action_space: action space
    :param device: device of the samples
    :param n_envs: number of environments
    :param optimize_memory_usage: must be False: frames are always stored once
    :param handle_timeout_termination: bootstrap from the last observation of a truncated episode
    :param n_steps: longest window of the n-step return; 1 for none
    :param gamma: discount of one step, in [0, 1]
    :param alpha: priority exponent, in [0, 1]; 0 samples uniformly
    :param weight_norm: divide the importance weights by the largest of the ``"batch"`` or of the whole ``"memory"``
    :param storage_device: where transitions are stored and drawn: ``"cpu"``, ``"cuda"``, or ``"auto"`` for ``device`` if they
        fit there and else the CPU
    :param seed: seed of the buffer's own generator; ``None`` takes one from torch's global generator
    :raises ValueError: if an argument is out of range; it names the argument and the value
    :raises MemoryError: if what is allocated at once will not fit; it says what is needed and what there is
    """

    #: Longest window of the samples, where it is to be another than ``n_steps`` for now; not saved
    longest_window: int | None = None

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 3,
        gamma: float = 0.99,
        alpha: float = 0.5,
        weight_norm: str = "batch",
        storage_device: th.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        check_integer("buffer_size", buffer_size, 1)
        check_integer("n_envs", n_envs, 1)
        check_integer("n_steps", n_steps, 1)
        check_number("gamma", gamma, 0, 1)
        check_number("alpha", alpha, 0, 1)
        check_choice("weight_norm", weight_norm, ("batch", "memory"))
        check_storage_device(storage_device)
        check_seed(seed)
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage=True: must be False, frames are always stored once")
        keep_freed_memory()
        # Not ReplayBuffer's own constructor: it would allocate everything
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage, self.handle_timeout_termination = False, handle_timeout_termination
        self.n_steps, self.gamma, self._alpha, self.weight_norm = n_steps, gamma, alpha, weight_norm
        self._action_dtype = _action_dtype(action_space)
        if storage_device == "auto":  # the training device, if everything fits there with a tenth to spare
            needed = self.estimate_memory(buffer_size, observation_space, action_space, n_envs)
            fits = self.device.type == "cuda" and needed <= 0.9 * available_memory(self.device)
            storage_device = self.device if fits else "cpu"
        self._allocate(device_at_hand(storage_device), seed)

    def _allocate(self, device: th.device, seed: int | None) -> None:
        """Make the rooms. Untouched memory costs nothing on the CPU; the observations wait for the first ``add``."""
        self.storage_device = device
        shape = self.buffer_size, self.n_envs
        n_leaves = math.prod(shape)
        check_memory(n_leaves, n_leaves * _bytes_per_leaf(self.action_space), device)
        self._transitions = TransitionStore(*shape, self.action_dim, self._action_dtype, device)
        self._observations = ObservationStore(self.observation_space, *shape, device)
        self._priorities = PrioritySampler(n_leaves, self._alpha, self.weight_norm, device, seed)
        # By slot, what was added that is not finite, for the next sample to raise
        self._non_finite: dict[int, str] = {}

    @staticmethod
    def estimate_memory(
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        n_envs: int = 1,
        n_stack: int | None = None,
        episode_length: float = math.inf,
    ) -> int:
        """
        Memory that a full buffer takes.

        :param buffer_size: most transitions kept, over all environments
        :param observation_space: observation space
        :param action_space: action space
        :param n_envs: number of environments
        :param n_stack: frames of an image stack; None for what the channels suggest (4 for the shape ``(4, 84, 84)``, and for
            ``(12, 84, 84)``, where three are a picture in colours)
        :param episode_length: mean length of an episode in steps, as the last frame of each one is stored apart; a lost life
            counts as an end where the environment says so
        :return: bytes
        :raises ValueError: if an argument is out of range; it names the argument and the value
        """
        check_integer("buffer_size", buffer_size, 1)
        check_integer("n_envs", n_envs, 1)
        if n_stack is not None:
            check_integer("n_stack", n_stack, 1)
        check_number("episode_length", episode_length, 0, math.inf, low_open=True)
        n_slots = max(buffer_size // n_envs, 1)
        store = ObservationStore(observation_space, n_slots, n_envs, th.device("cpu"))
        return store.estimate_memory(None, n_stack, episode_length) + n_slots * n_envs * _bytes_per_leaf(action_space)

    alpha = property(attrgetter("_alpha"), doc="Priority exponent. It stays, as the priorities are stored raised to it.")

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(getattr(self, name).nbytes for name in _ROOMS)

    @property
    def size_gib(self) -> float:
        """Memory of the full buffer in GiB, estimated for long episodes."""
        n_leaves = self.buffer_size * self.n_envs
        return (self._observations.estimate_memory() + n_leaves * _bytes_per_leaf(self.action_space)) / 2**30

    @property
    def arrays(self) -> list[Array]:
        """All that samples are made from. They are allocated anew when observations need more room, and by ``reset``."""
        return [array for name in _ROOMS for array in getattr(self, name).arrays]

    @property
    def generator(self) -> Any:
        """Draws the samples: NumPy's on the CPU, torch's on CUDA."""
        return self._priorities.generator

    @property
    def max_priority(self) -> float:
        """Largest raw priority seen so far: that of new transitions."""
        return self._priorities.max_priority

    def seed(self, seed: int) -> None:
        """
        :param seed: restarts the generator that draws the samples; not negative
        """
        self._priorities.seed(seed)

    def add(
        self,
        obs: Obs,
        next_obs: Obs,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition of every environment, at the largest priority seen. It follows the one before it, or
        ``truncate_last_trajectory`` was called: ``RainbowDQN`` does so at the start of ``learn``, SB3's own DQN does not.

        :param obs: ``[n_envs, *obs_shape]``, or a dict of those
        :param next_obs: the same; where the episode ended, its last observation
        :param action: ``[n_envs]`` or ``[n_envs, action_dim]``
        :param reward: ``[n_envs]``, of this step alone, not normalised
        :param done: ``[n_envs]`` bool: terminated or truncated
        :param infos: one per environment; ``"TimeLimit.truncated"`` tells a truncation
        :raises ValueError: if an array, or ``infos``, has the wrong shape
        :raises MemoryError: if it will not fit, by the first call or when it grows; it says what is needed and what there is
        """
        action = as_shape("action", action, self._action_dtype, (self.n_envs, self.action_dim))
        reward, done = as_shape("reward", reward, np.float32, (self.n_envs,)), as_shape("done", done, bool, (self.n_envs,))
        entries = self._observations.to_entries("obs", obs)
        next_entries = self._observations.to_entries("next_obs", next_obs)
        if len(infos) != self.n_envs:
            raise ValueError(f"{len(infos)} infos: must be {self.n_envs}, one per environment")
        self._note_non_finite(reward, entries, next_entries)
        if not self._observations.allocated:
            others = self.buffer_size * self.n_envs * _bytes_per_leaf(self.action_space)
            self._observations.allocate(entries, next_entries, done, others)

        terminated = done
        if self.handle_timeout_termination and done.any():
            terminated = done & ~np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        self._observations.add(self.pos, entries, next_entries)
        leaves = self._transitions.add(self.pos, action, reward, terminated, done)
        self._priorities.append(leaves.start, leaves.stop)
        self.pos = (self.pos + 1) % self.buffer_size
        self.full = self.full or self.pos == 0

    def add_block(
        self,
        obs: Obs,
        next_obs: Obs,
        actions: np.ndarray,
        rewards: np.ndarray,
        dones: np.ndarray,
        timeouts: np.ndarray,
        priorities: np.ndarray | None = None,
    ) -> None:
        """
        Store consecutive transitions, as ``add`` would one after the other. For actors that ship blocks to a learner.

        :param obs: ``[length, n_envs, *obs_shape]``, or a dict of those
        :param next_obs: the same
        :param actions: ``[length, n_envs]`` or ``[length, n_envs, action_dim]``
        :param rewards: ``[length, n_envs]``
        :param dones: ``[length, n_envs]`` bool: terminated or truncated
        :param timeouts: ``[length, n_envs]`` bool: truncated
        :param priorities: ``[length, n_envs]`` raw priorities; None for the largest seen
        :raises ValueError: if an array has the wrong shape, or a priority is negative or not finite
        """
        length = len(dones)
        shape = length, self.n_envs
        actions = as_shape("actions", actions, self._action_dtype, (*shape, self.action_dim))
        rewards = as_shape("rewards", rewards, np.float32, shape)
        dones, timeouts = as_shape("dones", dones, bool, shape), as_shape("timeouts", timeouts, bool, shape)
        for name, given in (("obs", obs), ("next_obs", next_obs)):
            lengths = [len(entry) for entry in (given.values() if isinstance(given, dict) else [given])]
            if any(other != length for other in lengths):
                raise ValueError(f"{name} has the length {lengths}: must be {length}, as dones")
        if priorities is not None:
            priorities = as_shape("priorities", priorities, np.float64, shape)
            if not (np.isfinite(priorities) & (priorities >= 0)).all():
                raise ValueError(f"priorities={priorities.tolist()}: must be finite and not negative")
        start = self.pos
        for i in range(length):
            infos = [{"TimeLimit.truncated": bool(timeout)} for timeout in timeouts[i]]
            self.add(_each(itemgetter(i), obs), _each(itemgetter(i), next_obs), actions[i], rewards[i], dones[i], infos)
        if priorities is not None and length > 0:
            slots = (start + np.arange(length)) % self.buffer_size
            leaves = slots[:, None] * self.n_envs + np.arange(self.n_envs)
            self.update_priorities(leaves, priorities)

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None, beta: float | th.Tensor = 1.0, check: bool = True
    ) -> PrioritizedReplayBufferSamples:
        """
        Draw transitions by priority, with replacement.

        :param batch_size: number of transitions
        :param env: normalises observations and single rewards
        :param beta: exponent of the importance weights, in [0, 1]; 1 corrects the sampling fully
        :param check: False, after ``prepare``, reads nothing back from the device
        :return: the batch, on ``device``
        :raises ValueError: if an argument is out of range, nothing was added yet, or something that is not finite, or all
            priorities are 0
        """
        if check:
            check_integer("batch_size", batch_size, 1)
            check_number("beta", beta, 0, 1)
            self.prepare()
        leaf_indices = self._priorities.sample(batch_size, check=False)
        return self._get_samples(leaf_indices, env, self._priorities.weights(leaf_indices, beta))

    def prepare(self) -> None:
        """
        What a sample needs of the host.

        :raises ValueError: if nothing was added yet, or something that is not finite, or all priorities are 0
        """
        if self.size() == 0:
            raise ValueError("the replay buffer is empty: nothing to sample")
        if self._non_finite:
            raise ValueError(next(iter(self._non_finite.values())))
        self._priorities.prepare()

    def _get_samples(  # type: ignore[override]
        self, batch_inds: Array, env: VecNormalize | None = None, weights: Array | None = None
    ) -> PrioritizedReplayBufferSamples:
        """
        :param batch_inds: ``[batch]`` int64: leaves. SB3's own buffers take slots, and draw an environment for each
        :param env: normalises observations and single rewards
        :param weights: ``[batch]`` importance weights; 1 if not given
        :return: the batch, on ``device``
        """
        leaf_indices = to_array(batch_inds, self.storage_device)
        normalize = None if env is None else lambda r: to_array(env.normalize_reward(to_numpy(r)), self.storage_device)
        n_steps = self.longest_window or self.n_steps
        actions, targets = self._transitions.get(leaf_indices, n_steps, self.gamma, normalize)
        returns, discounts, last_leaves, dones = targets
        observations, next_observations = self._observations.get(leaf_indices, last_leaves)
        if env is not None:
            observations, next_observations = self._normalize(observations, env), self._normalize(next_observations, env)
        if weights is None:
            weights = returns * 0 + 1

        def place(array: Array) -> th.Tensor:
            return to_tensor(array).to(self.device)

        return PrioritizedReplayBufferSamples(
            _each(place, observations),
            place(actions),
            _each(place, next_observations),
            place(dones[:, None]),
            place(returns[:, None]),
            place(discounts[:, None]),
            place(weights[:, None]),
            to_tensor(leaf_indices),  # they stay with the buffer
        )

    def update_priorities(
        self, leaf_indices: th.Tensor | np.ndarray, priorities: th.Tensor | np.ndarray, check: bool = True
    ) -> None:
        """
        Set the priorities of sampled transitions. Where a leaf appears twice, the last one wins.

        :param leaf_indices: ``[batch]`` int64, as sampled
        :param priorities: ``[batch]`` or ``[batch, 1]``: raw priorities, usually ``|td error|`` and a little more; one of 0 is
            never drawn again
        :param check: False, for leaves as sampled and positive priorities, reads nothing back from the device; priorities that
            are not finite change nothing then
        :raises ValueError: if one is negative or not finite, a leaf holds no transition, or there are not as many of both;
            nothing is changed then
        """
        leaf_indices = to_array(leaf_indices, self.storage_device).reshape(-1)
        priorities = to_array(priorities, self.storage_device).reshape(-1)
        if len(leaf_indices) != len(priorities) or len(priorities) == 0:
            raise ValueError(
                f"{len(leaf_indices)} leaf_indices, {len(priorities)} priorities: must be as many, and one or more"
            )
        if check:
            low, high = int(leaf_indices.min()), int(leaf_indices.max())
            if low < 0 or high >= self.size() * self.n_envs:
                raise ValueError(f"leaf_indices={low if low < 0 else high}: no transition is stored there")
        self._priorities.update(leaf_indices, priorities, check)

    def truncate_last_trajectory(self) -> None:
        """Close the running episodes, as truncations would: the environments start anew, and no window may go on into that."""
        self._transitions.close()

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        self._priorities.clear()
        self._observations = ObservationStore(self.observation_space, self.buffer_size, self.n_envs, self.storage_device)
        self._non_finite = {}

    # What SB3's buffers have as arrays; copies here, to be read

    @property
    def observations(self) -> Obs:  # type: ignore[override]
        """``[buffer_size, n_envs, *obs_shape]``: a copy of all observations, stacks rebuilt."""
        return self._copy_observations(0)

    @property
    def next_observations(self) -> Obs:  # type: ignore[override]
        """``[buffer_size, n_envs, *obs_shape]``: a copy of all next observations, stacks rebuilt."""
        return self._copy_observations(1)

    @property
    def actions(self) -> np.ndarray:  # type: ignore[override]
        """``[buffer_size, n_envs, action_dim]``: a copy."""
        return self._copy(self._transitions.actions)

    @property
    def rewards(self) -> np.ndarray:  # type: ignore[override]
        """``[buffer_size, n_envs]`` float32: a copy of the single rewards."""
        return self._copy(self._transitions.rewards)

    @property
    def dones(self) -> np.ndarray:  # type: ignore[override]
        """``[buffer_size, n_envs]`` float32: a copy; 1 where an episode ended."""
        ended = (to_numpy(self._transitions.goes_on) == 0).astype(np.float32)
        ended.reshape(-1, self.n_envs)[self.pos - 1] = ~self._transitions.running
        return self._copy(ended)

    @property
    def timeouts(self) -> np.ndarray:  # type: ignore[override]
        """``[buffer_size, n_envs]`` float32: a copy; 1 where an episode was truncated."""
        return self._copy(self.dones.reshape(-1) - to_numpy(self._transitions.terminated))

    def state(self) -> dict[str, Any]:
        """:return: what the buffer holds, as plain data and NumPy arrays, which may be the buffer's own memory"""
        n_leaves = self.size() * self.n_envs
        return {
            "position": (self.pos, self.full),
            "non_finite": self._non_finite,
            "transitions": self._transitions.state(n_leaves),
            "observations": self._observations.state(n_leaves),
            "priorities": self._priorities.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """
        Hold what another buffer held.

        :param state: what its ``state()`` returned; it was made with the same arguments
        """
        self._allocate(self.storage_device, seed=0)
        self.pos, self.full = state["position"]
        self._non_finite = dict(state["non_finite"])
        self._transitions.load_state(state["transitions"])
        self._observations.load_state(state["observations"])
        self._priorities.load_state(state["priorities"])

    def __getstate__(self) -> dict[str, Any]:
        """:return: everything, arrays only as far as they are filled"""
        not_kept = (*_ROOMS, "longest_window")
        return {name: value for name, value in self.__dict__.items() if name not in not_kept} | {"_state": self.state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """
        :param state: what ``__getstate__`` returned. Storage that lay on a missing CUDA device comes to the CPU
        """
        held = state.pop("_state")
        self.__dict__.update(state)
        self.storage_device = device_at_hand(self.storage_device)
        self.load_state(held)

    def _note_non_finite(self, reward: np.ndarray, *observations: dict[str, np.ndarray]) -> None:
        """Remember what is not finite. An infinite observation may be meant, and is left to the loss to judge."""
        self._non_finite.pop(self.pos, None)
        if not all(map(math.isfinite, reward.tolist())):
            self._non_finite[self.pos] = f"reward={reward.tolist()}: not finite, stored in slot {self.pos}"
        for key, entry in (item for entries in observations for item in entries.items()):
            # The sum of squares is nan only if an element is
            if entry.dtype.kind == "f" and math.isnan(np.vdot(entry, entry)):
                self._non_finite[self.pos] = f"observation {key + ' ' if key else ''}contains nan, stored in slot {self.pos}"

    def _normalize(self, observations: ArrayObs, env: VecNormalize) -> ArrayObs:
        normalized = env.normalize_obs(_each(to_numpy, observations))
        return _each(lambda entry: to_array(entry, self.storage_device), normalized)

    def _copy(self, leaves: Array) -> np.ndarray:
        """Leaves from the first on, as ``[buffer_size, n_envs, ...]``; zeros where no transition is."""
        array = np.zeros((self.buffer_size * self.n_envs, *leaves.shape[1:]), dtype=to_numpy(leaves[:0]).dtype)
        n_leaves = self.size() * self.n_envs
        array[:n_leaves] = to_numpy(leaves[:n_leaves])
        array.flags.writeable = False  # else writing into it would do nothing, and say nothing
        return array.reshape(self.buffer_size, self.n_envs, *leaves.shape[1:])

    def _copy_observations(self, which: int) -> Obs:
        if self.size() == 0:
            raise ValueError("the replay buffer is empty: it has no observations yet")
        leaves = to_array(np.arange(self.size() * self.n_envs), self.storage_device)
        return _each(self._copy, self._observations.get(leaves, leaves)[which])


def _each(function: Callable[[Any], Any], observations: Any) -> Any:
    """Apply a function to an observation, or to every entry of a dict."""
    if isinstance(observations, dict):
        return {key: function(entry) for key, entry in observations.items()}
    return function(observations)


def _action_dtype(space: spaces.Space[Any]) -> np.dtype:
    return np.dtype(ReplayBuffer._maybe_cast_dtype(space.dtype))


def _bytes_per_leaf(action_space: spaces.Space[Any]) -> int:
    """All but the observations; a priority has 8 bytes."""
    return TransitionStore.bytes_per_leaf(get_action_dim(action_space), _action_dtype(action_space)) + 8

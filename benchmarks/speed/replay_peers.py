"""
Replay buffers behind one small interface, for ``bench_replay.py``. A peer's library is imported when the peer is made.

Every one is set up as its own library's DQN or Rainbow examples do for stacked Atari frames.
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

SHAPE = (4, 84, 84)
OBSERVATIONS = spaces.Box(0, 255, SHAPE, np.uint8)
ACTIONS = spaces.Discrete(4)
ALPHA, BETA, GAMMA, N_STEPS = 0.5, 0.4, 0.99, 3


class Contender:
    """
    One replay buffer. Arrays have a leading axis for the environments.

    :param capacity: transitions
    :param n_envs: number of environments
    """

    #: What is to be said of it beside its numbers
    note = "3-step, prioritized"
    #: Bytes of one transition, as far as known before it is filled
    bytes_per_transition = 2 * 4 * 7056
    n_envs = 1

    def __init__(self, capacity: int, n_envs: int = 1) -> None:
        raise NotImplementedError

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any) -> None:
        """Store one transition of every environment."""
        raise NotImplementedError

    def sample(self, batch_size: int) -> None:
        """Draw a batch with its weights, observations as uint8 arrays or tensors."""
        raise NotImplementedError

    def update(self, priorities: np.ndarray) -> None:
        """Set the priorities of the last batch."""
        raise NotImplementedError


class Ours(Contender):
    """PrioritizedNStepReplayBuffer."""

    bytes_per_transition = 7250

    def __init__(self, capacity: int, n_envs: int = 1) -> None:
        from sb3_rainbow import PrioritizedNStepReplayBuffer

        self.n_envs = n_envs
        self.buffer = PrioritizedNStepReplayBuffer(
            capacity, OBSERVATIONS, ACTIONS, "cpu", n_envs, n_steps=N_STEPS, gamma=GAMMA, alpha=ALPHA, seed=0
        )
        self.infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any) -> None:
        self.buffer.add(obs, next_obs, action, reward, done, self.infos)

    def sample(self, batch_size: int) -> None:
        self.batch = self.buffer.sample(batch_size, beta=BETA)

    def update(self, priorities: np.ndarray) -> None:
        self.buffer.update_priorities(self.batch.leaf_indices, th.from_numpy(priorities))


class SB3(Contender):
    """SB3's ReplayBuffer."""

    note = "uniform, 1-step"
    buffer_class = "ReplayBuffer"
    settings: dict[str, Any] = {}

    def __init__(self, capacity: int, n_envs: int = 1) -> None:
        from stable_baselines3.common import buffers

        self.n_envs = n_envs
        self.buffer = getattr(buffers, self.buffer_class)(capacity, OBSERVATIONS, ACTIONS, "cpu", n_envs, **self.settings)
        self.infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any) -> None:
        self.buffer.add(obs, next_obs, action, reward, done, self.infos)

    def sample(self, batch_size: int) -> None:
        self.batch = self.buffer.sample(batch_size)

    def update(self, priorities: np.ndarray) -> None:
        """Nothing to do: it has no priorities."""


class SB3NStep(SB3):
    """SB3's NStepReplayBuffer."""

    note = "uniform, 3-step"
    buffer_class = "NStepReplayBuffer"
    settings = {"n_steps": N_STEPS, "gamma": GAMMA}


class Tianshou(Contender):
    """tianshou's PrioritizedReplayBuffer, last frames only."""

    note = "1-step in sample; a truncation's last frame is lost"
    bytes_per_transition = 7200

    def __init__(self, capacity: int, n_envs: int = 1) -> None:
        from tianshou.data import Batch, PrioritizedReplayBuffer

        self.batch_class = Batch
        self.buffer = PrioritizedReplayBuffer(
            capacity, ALPHA, BETA, stack_num=4, ignore_obs_next=True, save_only_last_obs=True
        )

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any) -> None:
        self.buffer.add(
            self.batch_class(
                obs=obs[0],
                act=action[0],
                rew=reward[0],
                terminated=done[0],
                truncated=False,
                obs_next=next_obs[0],
                info={},
            )
        )

    def sample(self, batch_size: int) -> None:
        self.batch, self.indices = self.buffer.sample(batch_size)

    def update(self, priorities: np.ndarray) -> None:
        self.buffer.update_weight(self.indices, priorities)


class TorchRL(Contender):
    """torchrl's TensorDictPrioritizedReplayBuffer."""

    note = "1-step"

    def __init__(self, capacity: int, n_envs: int = 1) -> None:
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer

        self.dict_class = TensorDict
        self.buffer = TensorDictPrioritizedReplayBuffer(alpha=ALPHA, beta=BETA, storage=LazyTensorStorage(capacity))

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any) -> None:
        following = self.dict_class(
            {
                "observation": th.from_numpy(next_obs[0]),
                "reward": th.from_numpy(reward),
                "done": th.from_numpy(done),
            },
            [],
        )
        step = {"observation": th.from_numpy(obs[0]), "action": th.from_numpy(action), "next": following}
        self.buffer.add(self.dict_class(step, []))

    def sample(self, batch_size: int) -> None:
        self.batch = self.buffer.sample(batch_size)

    def update(self, priorities: np.ndarray) -> None:
        self.batch["td_error"] = th.from_numpy(priorities)
        self.buffer.update_tensordict_priority(self.batch)


class Cpprb(Contender):
    """cpprb's PrioritizedReplayBuffer, stack_compress and next_of."""

    note = "1-step: it does not compress stacks of n steps"
    bytes_per_transition = 8300

    def __init__(self, capacity: int, n_envs: int = 1) -> None:
        from cpprb import PrioritizedReplayBuffer

        # It compresses stacks along the last axis
        shape = (84, 84, 4)
        env_dict = {"obs": {"shape": shape, "dtype": np.uint8}, "act": {}, "rew": {}, "done": {}}
        self.buffer = PrioritizedReplayBuffer(capacity, env_dict, next_of="obs", stack_compress="obs", alpha=ALPHA)

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any) -> None:
        self.buffer.add(
            obs=np.moveaxis(obs[0], 0, -1),
            act=action[0],
            rew=reward[0],
            next_obs=np.moveaxis(next_obs[0], 0, -1),
            done=done[0],
        )
        if done[0]:
            self.buffer.on_episode_end()

    def sample(self, batch_size: int) -> None:
        self.batch = self.buffer.sample(batch_size, beta=BETA)

    def update(self, priorities: np.ndarray) -> None:
        self.buffer.update_priorities(self.batch["indexes"], priorities)


class PFRL(Contender):
    """pfrl's PrioritizedReplayBuffer of lazily stacked frames."""

    bytes_per_transition = 8500

    def __init__(self, capacity: int, n_envs: int = 1) -> None:
        from pfrl.replay_buffer import batch_experiences
        from pfrl.replay_buffers import PrioritizedReplayBuffer
        from pfrl.wrappers.atari_wrappers import LazyFrames

        self.batch_experiences, self.lazy_frames = batch_experiences, LazyFrames
        self.buffer = PrioritizedReplayBuffer(capacity, alpha=ALPHA, beta0=BETA, num_steps=N_STEPS)
        self.last: Any = None

    def _lazy(self, frames: list[np.ndarray]) -> Any:
        return self.lazy_frames(frames, stack_axis=0)

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any) -> None:
        # Its wrappers hand on shared frames: only the newest one is copied
        frames = self.last or [frame.copy() for frame in obs[0][:, None]]
        next_frames = [*frames[1:], next_obs[0, -1:].copy()]
        self.buffer.append(
            self._lazy(frames),
            int(action[0]),
            float(reward[0]),
            self._lazy(next_frames),
            is_state_terminal=bool(done[0]),
        )
        self.last = None if done[0] else next_frames

    def sample(self, batch_size: int) -> None:
        # Its states become arrays when they are batched; uint8, as those of the others
        self.batch = self.batch_experiences(
            self.buffer.sample(batch_size), th.device("cpu"), lambda frames: frames.__array__(), GAMMA
        )

    def update(self, priorities: np.ndarray) -> None:
        self.buffer.update_errors(priorities.tolist())


class Notebook(Contender):
    """Plain arrays, probabilities recomputed by every draw."""

    note = "1-step, O(n) draws"

    def __init__(self, capacity: int, n_envs: int = 1) -> None:
        self.capacity, self.position, self.size, self.max_priority = capacity, 0, 0, 1.0
        self.obs = np.empty((capacity, *SHAPE), np.uint8)
        self.next_obs = np.empty((capacity, *SHAPE), np.uint8)
        self.others = np.empty((capacity, 3), np.float32)
        self.priorities = np.zeros(capacity, np.float32)

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any) -> None:
        i = self.position
        self.obs[i], self.next_obs[i] = obs[0], next_obs[0]
        self.others[i] = action[0], reward[0], done[0]
        self.priorities[i] = self.max_priority
        self.position = (i + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, batch_size: int) -> None:
        probabilities = self.priorities[: self.size] ** ALPHA
        probabilities /= probabilities.sum()
        self.indices = np.random.choice(self.size, batch_size, p=probabilities)  # noqa: NPY002 (as it was)
        weights = (self.size * probabilities[self.indices]) ** -BETA
        rows = self.obs[self.indices], self.next_obs[self.indices], self.others[self.indices], weights / weights.max()
        self.batch = tuple(th.from_numpy(row) for row in rows)

    def update(self, priorities: np.ndarray) -> None:
        self.priorities[self.indices] = priorities
        self.max_priority = max(self.max_priority, float(priorities.max()))


PEERS: dict[str, type[Contender]] = {
    "SB3 ReplayBuffer": SB3,
    "SB3 NStepReplayBuffer": SB3NStep,
    "tianshou": Tianshou,
    "torchrl": TorchRL,
    "cpprb": Cpprb,
    "pfrl": PFRL,
    "notebook": Notebook,
}

"""The replay buffer as a whole, against a plain list; its errors, its memory, its files."""

import copy
import itertools
import math
import pickle

import numpy as np
import psutil
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_rainbow import PrioritizedNStepReplayBuffer
from sb3_rainbow.replay.arrays import left_in_container, to_array, to_numpy

IMAGES = spaces.Box(0, 255, (3, 4, 5), np.uint8)
PAIRS = spaces.Box(0, 255, (2, 4, 5), np.uint8)
VECTORS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Discrete(9)


class BufferMachine(RuleBasedStateMachine):
    """Adds, blocks, samples, updates, saves and loads in any order; a plain list of all transitions says what is right."""

    @initialize(
        n_envs=st.integers(1, 8),
        n_steps=st.integers(1, 10),
        n_stack=st.integers(1, 4),
        n_slots=st.sampled_from([2, 3, 7, 13, 31]),
        alpha=st.sampled_from([0.0, 0.5, 1.0]),
        seed=st.integers(0, 1000),
    )
    def create(self, n_envs, n_steps, n_stack, n_slots, alpha, seed):
        self.n_envs, self.n_steps, self.n_stack, self.n_slots = n_envs, n_steps, n_stack, n_slots
        self.space = spaces.Dict({"image": spaces.Box(0, 255, (n_stack, 3, 4), np.uint8), "vector": VECTORS})
        self.buffer = PrioritizedNStepReplayBuffer(
            n_slots * n_envs, self.space, ACTIONS, "cpu", n_envs=n_envs, n_steps=n_steps, gamma=0.9, alpha=alpha, seed=seed
        )
        self.alpha = alpha
        self.rng = np.random.default_rng(seed)
        self.history: list[dict] = []
        self.leaves = np.zeros(n_slots * n_envs)
        self.largest = 1.0
        self.stacks = [self._first_stack() for _ in range(n_envs)]

    def _first_stack(self) -> np.ndarray:
        stack = np.zeros((self.n_stack, 3, 4), np.uint8)
        stack[-1] = self.rng.integers(1, 255, (3, 4))
        return stack

    def _step(self) -> dict:
        """One step of all environments, as ``add`` takes it."""
        obs = np.stack(self.stacks)
        done = self.rng.random(self.n_envs) < 0.2
        timeout = done & (self.rng.random(self.n_envs) < 0.5)
        next_obs = np.concatenate([obs[:, 1:], self.rng.integers(1, 255, (self.n_envs, 1, 3, 4), dtype=np.uint8)], axis=1)
        self.stacks = [self._first_stack() if d else s for s, d in zip(next_obs, done, strict=True)]
        return {
            "obs": {"image": obs, "vector": np.float32(self.rng.normal(size=(self.n_envs, 2)))},
            "next_obs": {"image": next_obs, "vector": np.float32(self.rng.normal(size=(self.n_envs, 2)))},
            "action": self.rng.integers(0, 9, self.n_envs),
            "reward": np.float32(self.rng.normal(size=self.n_envs)),
            "done": done,
            "timeout": timeout,
        }

    def _record(self, step: dict) -> None:
        slot = len(self.history) % self.n_slots
        self.history.append(step)
        self.leaves[slot * self.n_envs : (slot + 1) * self.n_envs] = self.largest**self.alpha

    @rule(n=st.integers(1, 12))
    def add(self, n):
        for _ in range(n):
            step = self._step()
            infos = [{"TimeLimit.truncated": bool(t)} for t in step["timeout"]]
            self.buffer.add(step["obs"], step["next_obs"], step["action"], step["reward"], step["done"], infos)
            self._record(step)

    @rule(n=st.integers(1, 12), with_priorities=st.booleans())
    def add_block(self, n, with_priorities):
        steps = [self._step() for _ in range(n)]
        priorities = self.rng.uniform(0.1, 3, (n, self.n_envs)) if with_priorities else None

        def column(name):
            if name in ("obs", "next_obs"):
                return {key: np.stack([s[name][key] for s in steps]) for key in ("image", "vector")}
            return np.stack([s[name] for s in steps])

        names = ("obs", "next_obs", "action", "reward", "done", "timeout")
        self.buffer.add_block(*(column(name) for name in names), priorities)
        start = len(self.history)
        for step in steps:
            self._record(step)
        if priorities is not None:
            for i in range(n):
                slot = (start + i) % self.n_slots
                self.leaves[slot * self.n_envs : (slot + 1) * self.n_envs] = priorities[i] ** self.alpha
            self.largest = max(self.largest, priorities.max())

    @rule()
    def truncate(self):
        self.buffer.truncate_last_trajectory()
        self.stacks = [self._first_stack() for _ in range(self.n_envs)]
        if self.history:
            last = self.history[-1]
            last["timeout"], last["done"] = last["timeout"] | ~last["done"], np.ones(self.n_envs, dtype=bool)

    @rule(batch_size=st.integers(1, 40), beta=st.floats(0, 1))
    def sample_and_update(self, batch_size, beta):
        if not self.history:
            with pytest.raises(ValueError, match="empty"):
                self.buffer.sample(batch_size, beta=beta)
            return
        samples = self.buffer.sample(batch_size, beta=beta)
        for i, leaf in enumerate(samples.leaf_indices.tolist()):
            self._check(leaf, samples, i)
        drawn = self.leaves[samples.leaf_indices.numpy()]
        np.testing.assert_allclose(samples.weights[:, 0], (drawn / drawn.min()) ** -beta, rtol=1e-5)
        priorities = th.from_numpy(self.rng.uniform(0, 5, batch_size))
        self.buffer.update_priorities(samples.leaf_indices, priorities)
        for leaf, priority in zip(samples.leaf_indices.tolist(), priorities.tolist(), strict=True):
            self.leaves[leaf] = priority**self.alpha
        self.largest = max(self.largest, priorities.max().item())

    def _check(self, leaf: int, samples, i: int) -> None:
        slot, env = divmod(leaf, self.n_envs)
        newest = len(self.history) - 1
        start = newest - (newest - slot) % self.n_slots
        value, k = 0.0, 0
        while True:
            step = self.history[start + k]
            value += 0.9**k * step["reward"][env]
            k += 1
            if step["done"][env] or k == self.n_steps or start + k > newest:
                break
        first = self.history[start]
        for key in ("image", "vector"):
            assert samples.observations[key][i].tolist() == first["obs"][key][env].tolist()
            assert samples.next_observations[key][i].tolist() == step["next_obs"][key][env].tolist()
        np.testing.assert_allclose(samples.rewards[i].item(), value, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(samples.discounts[i].item(), 0.9**k, rtol=1e-5)
        assert samples.dones[i].item() == float(step["done"][env] and not step["timeout"][env])
        assert samples.actions[i].item() == first["action"][env]

    @rule(how=st.sampled_from(["pickle", "deepcopy"]))
    def save_and_load(self, how):
        old = self.buffer
        self.buffer = pickle.loads(pickle.dumps(old)) if how == "pickle" else copy.deepcopy(old)
        assert self.buffer.size() == old.size()
        if self.history and self.leaves.sum() > 0:
            assert old.sample(8).leaf_indices.tolist() == self.buffer.sample(8).leaf_indices.tolist()

    @invariant()
    def priorities_are_those_of_the_list(self):
        if hasattr(self, "buffer"):
            np.testing.assert_allclose(self.buffer._priorities.leaves, self.leaves, rtol=1e-12)


BufferMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestBufferMachine = BufferMachine.TestCase


def add(buffer: ReplayBuffer, n: int, seed: int = 0, reward: float = 1.0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(n):
        obs, next_obs = (np.stack([buffer.observation_space.sample() for _ in range(buffer.n_envs)]) for _ in range(2))
        zeros = np.zeros(buffer.n_envs)
        actions = rng.integers(0, 9, (buffer.n_envs, buffer.action_dim))
        buffer.add(obs, next_obs, actions, zeros + reward, zeros, [{}] * buffer.n_envs)


def test_a_loaded_buffer_gives_the_same_next_thousand_samples(tmp_path):
    buffer = PrioritizedNStepReplayBuffer(300, IMAGES, ACTIONS, "cpu", n_envs=3, seed=1)
    add(buffer, 150)
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(buffer))
    loaded = pickle.loads((tmp_path / "buffer.pkl").read_bytes())
    for i in range(1000):
        ours, theirs = buffer.sample(8, beta=0.5), loaded.sample(8, beta=0.5)
        for name in ours._fields:
            assert (getattr(ours, name) == getattr(theirs, name)).all()
        priorities = th.rand(8, generator=th.Generator().manual_seed(i))
        buffer.update_priorities(ours.leaf_indices, priorities)
        loaded.update_priorities(theirs.leaf_indices, priorities)
        if i % 50 == 0:
            add(buffer, 1, seed=i), add(loaded, 1, seed=i)


def test_a_file_is_only_as_long_as_the_buffer_is_full():
    buffer = PrioritizedNStepReplayBuffer(100_000, IMAGES, ACTIONS, "cpu")
    add(buffer, 10)
    assert len(pickle.dumps(buffer)) < 2_000_000  # the leaves are all there: 800 kB


def test_vecnormalize_normalises_every_reward_before_the_sum(backend):
    class Env(DummyVecEnv):
        pass

    import gymnasium as gym

    env = VecNormalize(Env([lambda: gym.make("CartPole-v1")]), clip_reward=1.5)
    env.ret_rms.var, env.obs_rms.mean = np.array(0.25), np.array([1.0, 2, 3, 4])
    buffer = PrioritizedNStepReplayBuffer(10, env.observation_space, ACTIONS, "cpu", n_steps=3, gamma=0.5, alpha=0)
    for reward in (0.25, 10.0, 0.5):
        buffer.add(np.ones((1, 4)), np.ones((1, 4)), np.zeros(1), np.array([reward]), np.zeros(1), [{}])
    plain, normalised = buffer._get_samples(np.array([0])), buffer._get_samples(np.array([0]), env)
    assert plain.rewards.item() == pytest.approx(0.25 + 5 + 0.125)
    # each one over its deviation of .5, clipped at 1.5, then summed
    assert normalised.rewards.item() == pytest.approx(0.5 + 0.5 * 1.5 + 0.25 * 1.0, rel=1e-4)
    np.testing.assert_allclose(normalised.observations, env.normalize_obs(np.ones((1, 4), np.float32)))
    assert normalised.rewards.dtype == th.float32
    # Where they are stored: on a GPU, not on the CPU
    stored = to_array(np.ones((1, 4), np.float32), buffer.storage_device)
    assert type(buffer._normalize(stored, env)) is type(stored) is (np.ndarray if backend == "numpy" else th.Tensor)


@pytest.mark.parametrize("actions", [ACTIONS, spaces.Box(0, 9, (2,), np.float64), spaces.MultiDiscrete([9, 9, 9])], ids=str)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_sb3_arrays_can_be_read_and_extended_from(n_envs, actions):
    ours = PrioritizedNStepReplayBuffer(20 * n_envs, IMAGES, actions, "cpu", n_envs=n_envs)
    theirs = ReplayBuffer(20 * n_envs, IMAGES, actions, "cpu", n_envs=n_envs)
    for buffer in (ours, theirs):
        buffer.observation_space.seed(3)
        add(buffer, 13)
    other = PrioritizedNStepReplayBuffer(20 * n_envs, IMAGES, actions, "cpu", n_envs=n_envs)
    infos = [[{"TimeLimit.truncated": bool(t)} for t in row] for row in theirs.timeouts]
    other.extend(theirs.observations, theirs.next_observations, theirs.actions, theirs.rewards, theirs.dones, infos)
    assert other.full
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        expected = getattr(theirs, name)
        for buffer in (ours, other):
            assert (getattr(buffer, name) == expected).all(), name
            assert getattr(buffer, name).dtype == expected.dtype, name
            with pytest.raises(ValueError, match="read-only"):
                getattr(buffer, name)[:] = 0


def test_blocks_of_wrong_shapes_are_named_and_not_stored():
    buffer = PrioritizedNStepReplayBuffer(20, VECTORS, ACTIONS, "cpu", n_envs=2)
    block = {name: np.zeros((4, 2)) for name in ("actions", "rewards", "dones", "timeouts")}
    block |= {name: np.zeros((4, 2, *VECTORS.shape)) for name in ("obs", "next_obs")}
    for name, shape in {
        "rewards": (3, 2),
        "timeouts": (4, 1),
        "actions": (5, 2),
        "obs": (5, 2, 2),
        "next_obs": (3, 2, 2),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} has the"):
            buffer.add_block(**block | {name: np.zeros(shape)})
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"^priorities=\[\[{wrong}, .*must be finite and not negative"):
            buffer.add_block(**block, priorities=np.full((4, 2), wrong))
    with pytest.raises(ValueError, match="1 infos: must be 2"):
        buffer.add(*(block[name][0] for name in ("obs", "next_obs", "actions", "rewards", "dones")), [{}])
    assert buffer.size() == 0
    buffer.add_block(**block)
    buffer.add_block(**{name: array[:0] for name, array in block.items()}, priorities=np.zeros((0, 2)))
    assert buffer.size() == 4
    with pytest.raises(ValueError, match="batch_size=2.5"):
        buffer.sample(2.5)


def test_reset_forgets_everything_but_the_largest_priority():
    buffer = PrioritizedNStepReplayBuffer(20, IMAGES, ACTIONS, "cpu", seed=0)
    add(buffer, 5)
    buffer.update_priorities(np.arange(5), np.full(5, 7.0))
    buffer.reset()
    assert buffer.size() == 0
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(3)
    buffer._transitions.terminated[:] = 1  # as old transitions may have left it
    assert not any(getattr(buffer, name).any() for name in ("actions", "rewards", "dones", "timeouts"))
    add(buffer, 2)
    assert set(buffer.sample(50).leaf_indices.tolist()) == {0, 1}
    assert to_numpy(buffer._priorities.leaves)[0] == pytest.approx(7**0.5)


def test_samples_come_to_another_device_and_their_leaves_stay():
    buffer = PrioritizedNStepReplayBuffer(10, VECTORS, ACTIONS, "meta")
    zeros = np.zeros((1, 2))
    buffer.add(zeros, zeros, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    samples = buffer.sample(4)
    assert all(getattr(samples, name).is_meta for name in samples._fields if name != "leaf_indices")
    assert samples.leaf_indices.device.type == "cpu"


def test_nothing_is_allocated_before_the_first_transition(monkeypatch):
    monkeypatch.setattr("sb3_rainbow.replay.arrays.available_memory", lambda device: 2**40)
    before = psutil.Process().memory_info().rss
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    buffer = PrioritizedNStepReplayBuffer(1_000_000, space, ACTIONS, "cpu")
    assert psutil.Process().memory_info().rss - before < 50e6
    assert not buffer._observations.allocated
    buffer.add(
        np.zeros((1, 4, 84, 84), np.uint8), np.zeros((1, 4, 84, 84), np.uint8), np.zeros(1), np.zeros(1), np.zeros(1), [{}]
    )
    assert psutil.Process().memory_info().rss - before < 100e6


def test_a_buffer_that_will_not_fit_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr("sb3_rainbow.replay.arrays.available_memory", lambda device: 2**33)
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    buffer = PrioritizedNStepReplayBuffer(10**8, space, ACTIONS, "cpu")
    with pytest.raises(MemoryError, match=r"buffer_size=100000000: .* needs 6\d\d\.\d\d GiB on cpu, where 8.00 GiB are"):
        buffer.add(
            np.zeros((1, 4, 84, 84), np.uint8), np.zeros((1, 4, 84, 84), np.uint8), np.zeros(1), np.zeros(1), np.zeros(1), [{}]
        )
    assert buffer.size() == 0
    with pytest.raises(MemoryError, match=r"buffer_size=1000000000000: .* needs \d+\.\d\d GiB"):
        PrioritizedNStepReplayBuffer(10**12, VECTORS, ACTIONS, "cpu")


def test_observations_that_share_less_than_expected_are_refused_when_they_no_longer_fit(monkeypatch):
    buffer = PrioritizedNStepReplayBuffer(60, spaces.Box(0, 255, (4, 20, 20), np.uint8), ACTIONS, "cpu")
    pictures = np.random.default_rng(0).integers(0, 255, (60, 1, 4, 20, 20), dtype=np.uint8)
    pictures[:2] = 7  # a stack, for all that can be seen

    def fill() -> None:
        for obs, next_obs in itertools.pairwise(pictures):
            buffer.add(obs, next_obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}])

    buffer.add(pictures[0], pictures[1], np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    monkeypatch.setattr("sb3_rainbow.replay.arrays.available_memory", lambda device: 1000)
    with pytest.raises(MemoryError, match=r"buffer_size=60: the replay buffer needs 0.00 GiB on cpu, where"):
        fill()


def test_memory_ends_where_a_container_ends(tmp_path):
    def limit(folder: str, most: str, used: int, cached: int) -> None:
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "memory.max").write_text(f"{most}\n")
        (path / "memory.current").write_text(f"{used}\n")
        (path / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 7\n")

    own = tmp_path / "own"
    own.write_text("12:cpuset:/old\n0::/job_7/step_0\n")
    assert left_in_container(tmp_path, own) == math.inf
    limit("job_7/step_0", "max", 300, 0)
    assert left_in_container(tmp_path, own) == math.inf
    limit("job_7", "1000", 600, 150)
    assert left_in_container(tmp_path, own) == 557
    limit("job_7/step_0", "500", 300, 20)
    assert left_in_container(tmp_path, own) == 227
    limit("", "900", 890, 0)  # a container sees its own group as the first
    own.write_text("0::/\n")
    assert left_in_container(tmp_path, own) == 17
    assert left_in_container(tmp_path, tmp_path / "nowhere") == math.inf


@pytest.mark.parametrize("shape", [(3, 20, 20), (20, 20, 3)])
def test_pictures_in_colours_are_not_estimated_as_stacks(shape):
    space = spaces.Box(0, 255, shape, np.uint8)
    estimate = PrioritizedNStepReplayBuffer.estimate_memory(100, space, ACTIONS)
    buffer = PrioritizedNStepReplayBuffer(100, space, ACTIONS, "cpu")
    assert buffer.size_gib == pytest.approx(estimate / 2**30)
    pictures = np.random.default_rng(0).integers(0, 255, (131, 1, *shape), dtype=np.uint8)
    for obs, next_obs in itertools.pairwise(pictures):
        buffer.add(obs, next_obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    assert abs(buffer.nbytes - estimate) < 0.02 * estimate


def test_what_looks_like_a_stack_and_is_none_is_counted_once_it_is_seen():
    space = spaces.Box(0, 255, (4, 20, 20), np.uint8)
    buffer = PrioritizedNStepReplayBuffer(100, space, ACTIONS, "cpu")
    pictures = np.random.default_rng(0).integers(0, 255, (131, 1, 4, 20, 20), dtype=np.uint8)
    for obs, next_obs in itertools.pairwise(pictures):
        buffer.add(obs, next_obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    assert buffer.size_gib * 2**30 == pytest.approx(buffer.nbytes, rel=0.02)


def test_short_episodes_are_estimated_with_their_last_frames():
    space = spaces.Box(0, 255, (4, 20, 20), np.uint8)

    def estimate(**arguments):
        return PrioritizedNStepReplayBuffer.estimate_memory(1000, space, ACTIONS, **arguments)

    buffer = PrioritizedNStepReplayBuffer(1000, space, ACTIONS, "cpu")
    rng = np.random.default_rng(0)

    def follow(stack):
        return np.concatenate((stack[:, 1:], rng.integers(1, 255, (1, 1, 20, 20), np.uint8)), axis=1)

    empty = np.zeros((1, *space.shape), np.uint8)
    stack = follow(empty)
    for step in range(1, 1051):
        next_stack = follow(stack)
        buffer.add(stack, next_stack, np.zeros(1), np.zeros(1), np.array([step % 5 == 0]), [{}])
        stack = next_stack if step % 5 else follow(empty)
    assert buffer.nbytes == pytest.approx(estimate(episode_length=5), rel=0.03)
    assert estimate(episode_length=5) > 1.1 * estimate()


def test_what_the_caller_knows_of_stacks_comes_before_a_guess():
    space = spaces.Box(0, 255, (4, 20, 20), np.uint8)
    estimate = PrioritizedNStepReplayBuffer.estimate_memory
    stacked, single = (estimate(100, space, ACTIONS, n_stack=n_stack) for n_stack in (4, 1))
    assert stacked == estimate(100, space, ACTIONS)
    assert single - stacked == pytest.approx(100 * 3 * 400, rel=0.05)  # of each transition three frames more


@pytest.mark.parametrize(("free", "device"), [(1.2, "cuda"), (1.05, "cpu")])
def test_the_replay_lies_on_the_gpu_if_it_fits_with_a_tenth_to_spare(monkeypatch, free, device):
    allocated = []
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(PrioritizedNStepReplayBuffer, "_allocate", lambda self, device, seed: allocated.append(device.type))
    needed = PrioritizedNStepReplayBuffer.estimate_memory(1000, IMAGES, ACTIONS)
    monkeypatch.setattr("sb3_rainbow.replay.buffer.available_memory", lambda device: int(free * needed))
    PrioritizedNStepReplayBuffer(1000, IMAGES, ACTIONS, "cuda", storage_device="auto")
    PrioritizedNStepReplayBuffer(1000, IMAGES, ACTIONS, "cpu", storage_device="auto")
    PrioritizedNStepReplayBuffer(1000, IMAGES, ACTIONS, "cpu", storage_device="cuda:1")  # saved where there were two
    assert allocated == [device, "cpu", "cpu"]


def test_alpha_stays():
    buffer = PrioritizedNStepReplayBuffer(9, IMAGES, ACTIONS, "cpu", alpha=0.3)
    with pytest.raises(AttributeError, match="alpha"):
        buffer.alpha = 0.6
    assert copy.deepcopy(buffer).alpha == 0.3


@pytest.mark.parametrize(("argument", "value"), [("n_envs", 0), ("n_stack", -2), ("episode_length", 0), ("buffer_size", 0)])
def test_an_estimate_of_what_cannot_be_is_refused(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}={value}: must be"):
        PrioritizedNStepReplayBuffer.estimate_memory(
            **{"buffer_size": 9, argument: value}, observation_space=IMAGES, action_space=ACTIONS
        )


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize(
    "space",
    [VECTORS, PAIRS, spaces.Box(0, 255, (4, 20, 20), np.uint8), spaces.Dict({"a": VECTORS, "b": PAIRS}), spaces.Discrete(5)],
)
def test_the_estimate_is_what_a_full_buffer_takes(space, n_envs):
    estimate = PrioritizedNStepReplayBuffer.estimate_memory(2000, space, ACTIONS, n_envs)
    buffer = PrioritizedNStepReplayBuffer(2000, space, ACTIONS, "cpu", n_envs=n_envs)
    stacked = {key: entry for key, entry in buffer._observations._entries.items() if len(entry[0]) == 3}
    frames = {key: [np.zeros((n_envs, *shape[1:]), np.uint8)] * shape[0] for key, (shape, _) in stacked.items()}
    rng = np.random.default_rng(0)

    def observe():
        obs = {key: np.zeros((n_envs, *shape), dtype) for key, (shape, dtype) in buffer._observations._entries.items()}
        for key in stacked:
            obs[key] = np.stack(frames[key], axis=1)
            frames[key] = [*frames[key][1:], rng.integers(1, 255, frames[key][0].shape, dtype=np.uint8)]
        return obs if isinstance(space, spaces.Dict) else obs[""]

    obs = observe()
    for _ in range(2000 // n_envs + 50):
        next_obs = observe()
        buffer.add(obs, next_obs, np.zeros(n_envs), np.zeros(n_envs), np.zeros(n_envs), [{}] * n_envs)
        obs = next_obs
    assert abs(buffer.nbytes - estimate) < 0.02 * estimate
    assert buffer.size_gib == pytest.approx(estimate / 2**30)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("buffer_size", 0),
        ("buffer_size", 1.5),
        ("n_envs", 0),
        ("n_steps", 0),
        ("gamma", 1.1),
        ("gamma", float("nan")),
        ("alpha", -0.1),
        ("alpha", 2),
        ("weight_norm", "mean"),
        ("optimize_memory_usage", True),
    ],
)
def test_a_wrong_argument_is_named_with_its_value(argument, value):
    arguments = {"buffer_size": 10, "observation_space": VECTORS, "action_space": ACTIONS} | {argument: value}
    with pytest.raises(ValueError, match=f"{argument}={value!r}"):
        PrioritizedNStepReplayBuffer(**arguments)


def test_wrong_calls_say_what_is_wrong():
    buffer = PrioritizedNStepReplayBuffer(10, IMAGES, ACTIONS, "cpu")
    good = [np.zeros((1, 3, 4, 5), np.uint8), np.zeros((1, 3, 4, 5), np.uint8), np.zeros(1), np.zeros(1), np.zeros(1), [{}]]
    for index, name, wrong in (
        (0, "obs", np.zeros((1, 4, 5, 3), np.uint8)),
        (1, "next_obs", np.zeros((2, 3, 4, 5), np.uint8)),
        (2, "action", np.zeros(2)),
        (3, "reward", np.zeros((1, 2))),
        (4, "done", np.zeros(3)),
    ):
        arguments = list(good)
        arguments[index] = wrong
        with pytest.raises(ValueError, match=rf"{name} has the shape \({wrong.shape[0]}"):
            buffer.add(*arguments)
    with pytest.raises(ValueError, match="obs=.*must be an array"):
        buffer.add({"image": good[0]}, *good[1:])
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        buffer.observations  # noqa: B018
    assert buffer.size() == 0
    buffer.add(*good)
    with pytest.raises(ValueError, match="batch_size=0"):
        buffer.sample(0)
    with pytest.raises(ValueError, match="beta=1.5"):
        buffer.sample(1, beta=1.5)
    for wrong in (1, -1):
        with pytest.raises(ValueError, match=f"leaf_indices={wrong}: no transition"):
            buffer.update_priorities(np.array([0, wrong]), np.full(2, 5.0))
    with pytest.raises(ValueError, match="0 leaf_indices, 0 priorities: must be as many, and one or more"):
        buffer.update_priorities(np.zeros(0, int), np.zeros(0))
    with pytest.raises(ValueError, match="2 leaf_indices, 1 priorities"):
        buffer.update_priorities(np.array([0, 0]), np.ones(1))
    with pytest.raises(ValueError, match="priorities=nan"):
        buffer.update_priorities(np.array([0]), np.array([np.nan]))
    assert to_numpy(buffer._priorities.leaves).tolist() == [1] + [0] * 9


def test_what_is_not_finite_is_named_by_the_next_sample():
    buffer = PrioritizedNStepReplayBuffer(10, VECTORS, ACTIONS, "cpu", n_envs=2)
    zeros = np.zeros((2, 2), np.float32)
    buffer.add(zeros, zeros, np.zeros(2), np.zeros(2), np.zeros(2), [{}, {}])
    buffer.sample(2)
    buffer.add(zeros, zeros, np.zeros(2), np.array([0, np.nan]), np.zeros(2), [{}, {}])
    with pytest.raises(ValueError, match=r"reward=\[0.0, nan\]: not finite, stored in slot 1"):
        buffer.sample(2)
    buffer.reset()
    zeros[1, 0] = np.nan
    buffer.add(np.zeros((2, 2)), zeros, np.zeros(2), np.zeros(2), np.zeros(2), [{}, {}])
    with pytest.raises(ValueError, match="observation contains nan, stored in slot 0"):
        buffer.sample(2)
    for _ in range(10):
        buffer.add(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2), np.zeros(2), np.zeros(2), [{}, {}])
    buffer.sample(2)  # it is overwritten

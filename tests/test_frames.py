"""Every stack comes out as it went in, whoever stacked it, and frames are stored once."""

from collections import deque

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecTransposeImage

from sb3_rainbow import PrioritizedNStepReplayBuffer
from sb3_rainbow.replay.arrays import to_array, to_numpy
from sb3_rainbow.replay.frames import FrameStore, count_rows, find_stack

ACTIONS = spaces.Discrete(3)


class ImageEnv(gym.Env):
    """Random pictures; episodes end by termination or truncation, after random times."""

    action_space = ACTIONS

    def __init__(self, shape: tuple[int, ...], seed: int, p_end: float = 0.2) -> None:
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.rng = np.random.default_rng(seed)
        self.p_end = p_end

    def reset(self, *, seed=None, options=None):
        return self._picture(), {}

    def step(self, action):
        ended = self.rng.random() < self.p_end
        truncated = bool(ended and self.rng.random() < 0.5)
        return self._picture(), 1.0, bool(ended and not truncated), truncated, {}

    def _picture(self) -> np.ndarray:
        shape = self.observation_space.shape
        # Now and then black: a frame that looks like padding
        return np.zeros(shape, np.uint8) if self.rng.random() < 0.1 else self.rng.integers(0, 255, shape, dtype=np.uint8)


def stacked_by_gymnasium(env: gym.Env, n_stack: int, padding: str) -> gym.Env:
    return gym.wrappers.FrameStackObservation(env, n_stack, padding_type=padding)


class DictEnv(gym.ObservationWrapper):
    """The picture, a second one that is no stack, and a vector."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        other = spaces.Box(0, 255, (9, 8, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {"stack": env.observation_space, "rgb": other, "vector": spaces.Box(-1, 1, (5,)), "number": spaces.Discrete(7)}
        )

    def observation(self, observation):
        rng = self.unwrapped.rng
        rgb, vector = rng.integers(0, 255, (9, 8, 3), dtype=np.uint8), rng.uniform(-1, 1, 5).astype(np.float32)
        return {"stack": observation, "rgb": rgb, "vector": vector, "number": int(rng.integers(7))}


def make(wrapper: str, n_envs: int, p_end: float = 0.2) -> VecEnv:
    def image(shape):
        return [lambda seed=seed: ImageEnv(shape, seed, p_end) for seed in range(n_envs)]

    def gymnasium(shape, n_stack, padding):
        return DummyVecEnv([lambda f=f: stacked_by_gymnasium(f(), n_stack, padding) for f in image(shape)])

    match wrapper:
        case "VecFrameStack, channels last":
            return VecFrameStack(DummyVecEnv(image((9, 8, 1))), 4)
        case "VecFrameStack, transposed, as on Atari":
            return VecTransposeImage(VecFrameStack(DummyVecEnv(image((36, 37, 1))), 4))
        case "VecFrameStack of colours, transposed":
            return VecTransposeImage(VecFrameStack(DummyVecEnv(image((36, 37, 3))), 3))
        case "VecFrameStack, channels first":
            return VecFrameStack(DummyVecEnv(image((1, 9, 8))), 2, channels_order="first")
        case "FrameStackObservation, first frame repeated":
            return gymnasium((9, 8), 4, "reset")
        case "FrameStackObservation, zeros":
            return gymnasium((9, 8), 8, "zero")
        case "FrameStackObservation of colours":
            return gymnasium((9, 8, 3), 4, "reset")
        case "one frame":
            return DummyVecEnv(image((9, 8, 1)))
        case "RGB, no stack":
            return DummyVecEnv(image((3, 36, 37)))
    raise AssertionError(wrapper)


N_STACK = {
    "VecFrameStack, channels last": 4,
    "VecFrameStack, transposed, as on Atari": 4,
    "VecFrameStack of colours, transposed": 3,
    "VecFrameStack, channels first": 2,
    "FrameStackObservation, first frame repeated": 4,
    "FrameStackObservation, zeros": 8,
    "FrameStackObservation of colours": 4,
    "one frame": 1,
    "RGB, no stack": 1,
}


def play(env: VecEnv, n_steps: int):
    """What SB3 gives to the buffer at every step: obs, next_obs with the true last observations, dones, infos."""
    obs = env.reset()
    for _ in range(n_steps):
        new_obs, _, dones, infos = env.step([0] * env.num_envs)
        next_obs = {k: v.copy() for k, v in new_obs.items()} if isinstance(new_obs, dict) else new_obs.copy()
        for i, done in enumerate(dones):
            if done and isinstance(next_obs, dict):
                for key, entry in next_obs.items():
                    entry[i] = infos[i]["terminal_observation"][key]
            elif done:
                next_obs[i] = infos[i]["terminal_observation"]
        yield obs, next_obs, dones, infos
        obs = {k: v.copy() for k, v in new_obs.items()} if isinstance(new_obs, dict) else new_obs.copy()


def check(buffer: PrioritizedNStepReplayBuffer, kept) -> None:
    """Compare all that is stored with what was added."""
    for i, (obs, next_obs) in enumerate(kept):
        slot = (buffer.pos - len(kept) + i) % buffer.buffer_size
        sample = buffer._get_samples(np.arange(buffer.n_envs) + slot * buffer.n_envs)
        pairs = [(obs, sample.observations), (next_obs, sample.next_observations)]
        for added, got in pairs:
            if isinstance(added, dict):
                assert all(got[key].numpy().tobytes() == np.ascontiguousarray(added[key]).tobytes() for key in added)
            else:
                assert got.numpy().dtype == added.dtype
                assert got.numpy().tobytes() == np.ascontiguousarray(added).tobytes()


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("wrapper", N_STACK)
def test_every_stack_equals_the_one_that_went_in(backend, wrapper, n_envs):
    env = make(wrapper, n_envs)
    buffer = PrioritizedNStepReplayBuffer(29 * n_envs, env.observation_space, ACTIONS, "cpu", n_envs=n_envs, n_steps=1, seed=0)
    kept: deque = deque(maxlen=29)
    for i, (obs, next_obs, dones, infos) in enumerate(play(env, 120)):
        buffer.add(obs, next_obs, np.zeros(n_envs), np.zeros(n_envs), dones, infos)
        kept.append((obs, next_obs))
        if i % 13 == 0 or i == 119:
            check(buffer, kept)
    store = buffer._observations._stores[""]
    assert (store.n_stack, buffer.full) == (N_STACK[wrapper], True)
    assert store._rows.shape[1] == store.n_stack + 1, "a next observation was stored whole"


@pytest.mark.parametrize("n_envs", [1, 2])
def test_every_entry_of_a_dict_is_stored_by_itself(backend, n_envs):
    env = DummyVecEnv([lambda s=s: DictEnv(stacked_by_gymnasium(ImageEnv((9, 8), s), 4, "zero")) for s in range(n_envs)])
    buffer = PrioritizedNStepReplayBuffer(17 * n_envs, env.observation_space, ACTIONS, "cpu", n_envs=n_envs, n_steps=1)
    kept: deque = deque(maxlen=17)
    for obs, next_obs, dones, infos in play(env, 50):
        buffer.add(obs, next_obs, np.zeros(n_envs), np.zeros(n_envs), dones, infos)
        kept.append((obs, next_obs))
    check(buffer, kept)
    assert buffer._observations._stores["stack"].n_stack == 4
    assert buffer._observations._stores["rgb"].n_stack == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(data=st.data())
def test_nothing_is_wrong_whatever_is_added(backend, data):
    """Arbitrary stacks of a few frames, black ones and repetitions among them, that may follow from each other or not."""
    n_envs, n_stack = data.draw(st.integers(1, 3), "n_envs"), data.draw(st.integers(1, 4), "n_stack")
    n_slots = data.draw(st.sampled_from([1, 2, 5, 13]), "n_slots")
    axis = data.draw(st.sampled_from([0, -1]), "axis")
    frame = (2, 3, 1) if axis == -1 else (1, 2, 3)
    shape = tuple(n * (n_stack if i == axis % 3 else 1) for i, n in enumerate(frame))
    store = FrameStore(n_slots, n_envs, shape, np.dtype(np.uint8), (axis, n_stack), th.device("cpu"))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    alphabet = np.concatenate([np.zeros((1, *frame)), rng.integers(1, 255, (4, *frame))]).astype(np.uint8)

    def stack(frames: list[int]) -> np.ndarray:
        return np.concatenate([alphabet[i] for i in frames], axis=axis)

    p_link, p_shift = data.draw(st.sampled_from([0.0, 0.5, 0.95, 1.0])), data.draw(st.sampled_from([0.0, 0.9, 1.0]))
    last = rng.integers(0, 5, (n_envs, n_stack))
    kept: deque = deque(maxlen=n_slots)
    for i in range(data.draw(st.integers(1, 60), "adds")):
        frames = np.where(rng.random((n_envs, 1)) < p_link, last, rng.integers(0, 5, (n_envs, n_stack)))
        shifted = np.concatenate([frames[:, 1:], rng.integers(0, 5, (n_envs, 1))], axis=1)
        last = np.where(rng.random((n_envs, 1)) < p_shift, shifted, rng.integers(0, 5, (n_envs, n_stack)))
        obs, next_obs = np.stack([stack(f) for f in frames]), np.stack([stack(f) for f in last])
        store.add(i % n_slots, obs, next_obs)
        kept.append((i % n_slots, obs, next_obs))
        for slot, old, old_next in kept:
            leaves = to_array(np.arange(n_envs) + slot * n_envs, th.device("cpu"))
            got, got_next = store.get(leaves, leaves)
            assert (to_numpy(got) == old).all()
            assert (to_numpy(got_next) == old_next).all()


def test_floating_point_images_come_out_bit_by_bit(backend):
    # nan is not equal to itself, and -0 equals 0: only bytes tell
    store = FrameStore(5, 1, (4, 1, 3), np.dtype(np.float32), (0, 4), th.device("cpu"))
    frames = np.array([[np.nan, 0.0, 1.0], [-0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, np.inf, -np.nan]] * 4, np.float32)
    stacks = [frames[i : i + 4].reshape(1, 4, 1, 3) for i in range(10)]
    for i in range(9):
        store.add(i % 5, stacks[i], stacks[i + 1])
    for i in range(4, 9):
        leaf = to_array(np.array([i % 5]), th.device("cpu"))
        assert [to_numpy(x).tobytes() for x in store.get(leaf, leaf)] == [stacks[i].tobytes(), stacks[i + 1].tobytes()]


def test_shorter_episodes_make_the_ring_grow_and_longer_ones_do_not(backend):
    env = make("VecFrameStack, channels last", 2, p_end=0.0)
    buffer = PrioritizedNStepReplayBuffer(202, env.observation_space, ACTIONS, "cpu", n_envs=2, n_steps=1)
    kept: deque = deque(maxlen=101)
    lengths = []
    for p_end in (0.0, 0.05, 0.5, 1.0, 0.0):
        for single in env.venv.envs:
            single.unwrapped.p_end = p_end
        for obs, next_obs, dones, infos in play(env, 250):
            buffer.add(obs, next_obs, np.zeros(2), np.zeros(2), dones, infos)
            kept.append((obs, next_obs))
        check(buffer, kept)
        lengths.append(buffer._observations._stores[""]._length)
    assert lengths[0] < lengths[1] < lengths[2] < lengths[3] == lengths[4]
    assert lengths[0] < count_rows(101, 2, 4, episode_length=np.inf)


def atari_bytes_per_transition(buffer: PrioritizedNStepReplayBuffer) -> float:
    return buffer.nbytes / (buffer.buffer_size * buffer.n_envs)


def test_atari_frames_take_an_eighth_of_what_sb3_needs():
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=1, seed=0), 4)
    env = VecTransposeImage(env)
    buffer = PrioritizedNStepReplayBuffer(2000, env.observation_space, env.action_space, "cpu", n_steps=1)
    kept: deque = deque(maxlen=50)
    for obs, next_obs, dones, infos in play(env, 2100):
        buffer.add(obs, next_obs, np.zeros(1), np.zeros(1), dones, infos)
        kept.append((obs, next_obs))
    check(buffer, kept)
    env.close()
    # Frames, and all else: a frame has 7056 bytes
    assert buffer._observations._stores[""]._length * 7056 <= 1.02 * 7056 * 2000
    assert atari_bytes_per_transition(buffer) <= 7250


@pytest.mark.parametrize(
    ("shape", "n_stack", "axis"),
    [
        ((4, 84, 84), 4, 0),
        ((84, 84, 4), 4, -1),
        ((12, 84, 84), 4, 0),
        ((2, 84, 84), 2, 0),
        ((3, 84, 84), 3, 0),
        ((5, 20, 20, 3), 5, 0),
    ],
)
def test_the_depth_of_a_stack_is_found_from_one_transition(shape, n_stack, axis):
    rng = np.random.default_rng(0)
    frame = list(shape)
    frame[axis] //= n_stack
    frames = rng.integers(0, 255, (n_stack + 1, *frame), dtype=np.uint8)
    obs, next_obs = (np.concatenate(frames[i : i + n_stack], axis)[None] for i in (0, 1))
    assert find_stack(obs, next_obs) == (axis, n_stack)


def test_pictures_that_are_no_stacks_are_not_taken_for_one():
    rng = np.random.default_rng(0)
    obs, next_obs = rng.integers(0, 255, (2, 1, 4, 84, 84), dtype=np.uint8)
    assert find_stack(obs, next_obs) == (0, 1)
    still = np.zeros((1, 1, 84, 84), np.uint8)
    assert find_stack(still, still) == (0, 1)


@pytest.mark.parametrize(("channels", "n_stack"), [(2, 2), (3, 3), (4, 4), (6, 6), (8, 8), (9, 3), (12, 4)])
def test_where_nothing_moves_the_likeliest_stack_is_taken(channels, n_stack):
    frame = np.random.default_rng(0).integers(0, 255, (1, 1, 20, 20), dtype=np.uint8)
    for still in (np.repeat(frame, channels, axis=1), np.zeros((1, channels, 20, 20), np.uint8)):
        assert find_stack(still, still) == (0, n_stack)


@pytest.mark.parametrize("black", [1, 2, 3])
def test_stacks_of_colours_that_begin_black_are_stored_once(black):
    """Nothing moves in the first transition: any depth would do for it."""
    space = spaces.Box(0, 255, (12, 20, 20), np.uint8)
    buffer = PrioritizedNStepReplayBuffer(60, space, spaces.Discrete(2), "cpu")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (80, 3, 20, 20), dtype=np.uint8)
    frames[: 3 + black] = 0
    for i in range(76):
        obs, next_obs = (frames[j : j + 4].reshape(1, 12, 20, 20) for j in (i, i + 1))
        buffer.add(obs, next_obs, np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    assert buffer.nbytes <= buffer.estimate_memory(60, space, spaces.Discrete(2))

"""Environments in actors of Ray are those of one process, and an actor that dies or hangs is replaced."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_rainbow import PrioritizedNStepReplayBuffer, RainbowDQN
from sb3_rainbow.checkpoint.encoding import Unencodable
from sb3_rainbow.envs import RayVecEnv, WorkerError
from sb3_rainbow.envs.subproc import STARTING

ray = pytest.importorskip("ray")
# Actors do not import the tests
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


class Counting(gym.Env):
    """Shows the last seed it was given, how often it was reset, and the step; the reward is the step. It never ends."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Discrete(2)

    def __init__(self, number: int = 0) -> None:
        self.number, self.n_resets, self.step_number = number, 0, 0

    def _observation(self) -> np.ndarray:
        return np.array([self.number, self.n_resets, self.step_number], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.number = self.number if seed is None else seed
        self.n_resets, self.step_number = self.n_resets + 1, 0
        return self._observation(), {"seed": seed}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if action == 9:
            raise ValueError("nine is no action")
        self.step_number += 1
        return self._observation(), float(self.step_number), False, False, {}


class Pair(Counting):
    """Two observations; it ends after seven steps, and draws a number at each."""

    observation_space = spaces.Dict({"count": Counting.observation_space, "drawn": spaces.Box(0, 9, (1,), np.int64)})

    def _observation(self) -> Any:
        return {"count": super()._observation(), "drawn": self.np_random.integers(0, 9, size=1)}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.step_number == 7 and action == 0, self.step_number == 7, info | {"drawn": observation}


def counting(n_envs: int, **settings: Any) -> RayVecEnv:
    return RayVecEnv([lambda i=i: Counting(i) for i in range(n_envs)], **settings)


def test_options_of_ray_reach_the_actors():
    env = counting(1, ray_options={"name": "simulator"})
    assert ray.get_actor("simulator")._actor_id == env._actors[0]._actor_id
    env.close()


def pids_of(env: VecEnv) -> list[int]:
    """By environment, the process that it is in."""
    pids = ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in env._actors])
    return [pid for pid, part in zip(pids, env._slices, strict=True) for _ in range(env.num_envs)[part]]


def kill(env: VecEnv, number: int, with_signal: int = signal.SIGKILL) -> None:
    os.kill(pids_of(env)[number], with_signal)


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        # Monitor's episodes have wall time in them
        assert one.keys() == other.keys()
        for key in one:
            if key != "t":
                same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for x, y in zip(one, other, strict=True):
            same(x, y)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.flags.writeable == other.flags.writeable
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


def play_both(make: Callable[..., VecEnv], steps: int, **settings: Any) -> int:
    ours, theirs = make(vec_env_cls=RayVecEnv, vec_env_kwargs=settings), make(vec_env_cls=DummyVecEnv)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    same(ours.reset(), theirs.reset())
    rng, n_ends = np.random.default_rng(0), 0
    for _ in range(steps):
        actions = rng.integers(ours.action_space.n, size=ours.num_envs)
        mine, other = ours.step(actions), theirs.step(actions)
        same(mine, other)
        same(ours.reset_infos, theirs.reset_infos)
        n_ends += mine[2].sum()
    ours.close()
    ours.close()
    return n_ends


@pytest.mark.parametrize("envs_per_actor", [1, 2, 5])
def test_it_gives_what_dummy_vec_env_gives(envs_per_actor):
    def make(**settings: Any) -> VecEnv:
        return make_vec_env("CartPole-v1", 3, seed=3, **settings)

    assert play_both(make, 200, envs_per_actor=envs_per_actor) > 20


def test_it_gives_what_dummy_vec_env_gives_for_dict_observations():
    def make(**settings: Any) -> VecEnv:
        return make_vec_env(Pair, 3, seed=3, **settings)

    assert play_both(make, 100, envs_per_actor=2) > 0


def test_a_thousand_steps_of_three_breakouts_are_those_of_dummy_vec_env():
    def make(**settings: Any) -> VecEnv:
        def breakout(**kwargs: Any) -> gym.Env:
            import ale_py

            gym.register_envs(ale_py)
            return gym.make("BreakoutNoFrameskip-v4", **kwargs)

        return make_atari_env(breakout, 3, seed=3, **settings)

    assert play_both(make, 1000, envs_per_actor=2) > 10


def test_attributes_and_methods_reach_each_environment():
    env = counting(3, envs_per_actor=2)
    assert env.get_attr("number") == [0, 1, 2]
    env.set_attr("number", 7, indices=[2, 0])
    assert env.get_attr("number") == [7, 1, 7]
    assert env.env_method("get_wrapper_attr", "number", indices=1) == [1]
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
    assert len(set(pids_of(env))) == 2
    with pytest.raises(AttributeError):
        env.get_attr("nothing")
    env.seed(5)
    env.reset()
    assert [info["seed"] for info in env.reset_infos] == [5, 6, 7]
    with pytest.raises(ValueError, match="nine is no action"):
        env.step(np.array([0, 9, 0]))
    env.close()


# Two to three seconds on an idle machine; a new actor starts in many where other tests run beside
@pytest.mark.parametrize("slack", [60, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_actor_that_dies_or_hangs_is_replaced_and_its_episodes_are_truncated(number, slack, monkeypatch):
    timeout = 60.0 if number == signal.SIGKILL else 8.0
    env = counting(3, envs_per_actor=2, timeout=timeout)
    env.seed(5)
    env.reset()
    for _ in range(4):
        env.step(np.zeros(3, int))
    pids = pids_of(env)
    kill(env, 0, number)
    if number == signal.SIGKILL:  # a checkpoint just now does not end the training
        with pytest.raises(Unencodable, match=r"^actor 0 died \(\w+\)$"):
            env.state_dict()
    waits, wait = [], env._ray.wait
    monkeypatch.setattr(env._ray, "wait", lambda *args, **options: waits.append(options["timeout"]) or wait(*args, **options))
    start = time.monotonic()
    observations, rewards, dones, infos = env.step(np.zeros(3, int))
    seconds = time.monotonic() - start
    assert waits == [timeout, STARTING]
    print(f"replaced after {seconds:.2f} s")
    assert seconds < (0 if number == signal.SIGKILL else timeout) + slack
    assert rewards.tolist() == [0, 0, 5]
    assert dones.tolist() == [True, True, False]
    assert observations.tolist() == [[8, 1, 0], [9, 1, 0], [7, 1, 5]]
    for i in range(2):
        assert infos[i]["TimeLimit.truncated"]
        assert infos[i]["terminal_observation"].tolist() == [5 + i, 1, 4]
        assert infos[i]["worker_error"].startswith("actor 0 d")
        assert env.reset_infos[i]["seed"] == 5 + i + 3
    assert "worker_error" not in infos[2]
    assert env.step(np.zeros(3, int))[0].tolist() == [[8, 1, 1], [9, 1, 1], [7, 1, 6]]
    assert pids_of(env)[0] != pids[0]
    assert pids_of(env)[2] == pids[2]
    kill(env, 2)
    assert env.reset().tolist() == [[8, 2, 0], [9, 2, 0], [13, 1, 0]]
    env.close()
    if number == signal.SIGSTOP:
        start = time.monotonic()
        while psutil.pid_exists(pids[0]):  # Ray kills what does not end by itself
            assert time.monotonic() - start < 60
            time.sleep(0.1)
        print(f"the one that hung was gone {time.monotonic() - start:.1f} s later")


def test_n_step_returns_end_at_the_cut():
    env = counting(2)
    buffer = PrioritizedNStepReplayBuffer(
        40, env.observation_space, env.action_space, "cpu", n_envs=2, n_steps=3, gamma=0.5, seed=0
    )
    env.seed(5)
    last = env.reset()
    for step in range(10):
        if step == 5:
            kill(env, 0)
        new, rewards, dones, infos = env.step(np.zeros(2, int))
        following = new.copy()
        for i in np.flatnonzero(dones):
            following[i] = infos[i]["terminal_observation"]
        buffer.add(last, following, np.zeros((2, 1), int), rewards, dones, infos)
        last = new
    env.close()
    found = {}
    for _ in range(40):
        batch = buffer.sample(16)
        values = (batch.observations, batch.rewards, batch.discounts, batch.next_observations, batch.dones)
        for observation, reward, discount, following, done in zip(*(value.numpy() for value in values), strict=True):
            assert done == 0  # nothing has terminated: what follows the cut is worth what was seen last
            found[tuple(observation)] = (reward.item(), discount.item(), following.tolist())
    # Rewards 4, 5 and that of the lost step, 0; then 5, 0; then 0
    assert found[5, 1, 3] == (4 + 0.5 * 5, 0.125, [5, 1, 5])
    assert found[5, 1, 4] == (5, 0.25, [5, 1, 5])
    assert found[5, 1, 5] == (0, 0.5, [5, 1, 5])
    assert found[7, 1, 0] == (1 + 0.5 * 2 + 0.25 * 3, 0.125, [7, 1, 3])
    assert found[6, 1, 3] == (4 + 0.5 * 5 + 0.25 * 6, 0.125, [6, 1, 6])


def test_training_goes_on_when_actors_die():
    env = make_vec_env("CartPole-v1", 4, seed=0, vec_env_cls=RayVecEnv, vec_env_kwargs={"envs_per_actor": 2})
    model = RainbowDQN("MlpPolicy", env, learning_starts=20, seed=0).learn(100)
    kill(env, 2)
    model.learn(100, reset_num_timesteps=False)
    assert model.num_timesteps >= 200
    assert env._n_replaced == 1
    env.close()


def test_the_state_of_its_environments_is_read_and_written():
    env = make_vec_env("CartPole-v1", 3, seed=0, vec_env_cls=RayVecEnv, vec_env_kwargs={"envs_per_actor": 2})
    obs = env.reset()
    state = env.state_dict()
    first = [env.step(np.ones(3, int)) for _ in range(30)]
    env._n_replaced = 2
    env.load_state_dict(state)
    assert (env._last_obs == obs).all(), "what an actor that dies now has seen last"
    assert env._n_replaced == 0
    same([env.step(np.ones(3, int)) for _ in range(30)], first)
    env.close()


def test_replacements_that_die_as_well_are_an_error(tmp_path):
    flag = tmp_path / "broken"

    def make(flag: Path = flag) -> gym.Env:
        if flag.exists():
            os._exit(1)
        return Counting()

    env = RayVecEnv([make])
    env.reset()
    flag.touch()
    kill(env, 0)
    with pytest.raises(WorkerError, match="actor 0 died .*3 replacements died"):
        env.step(np.zeros(1, int))
    env.close()


@pytest.mark.parametrize(("argument", "value"), [("envs_per_actor", 0), ("timeout", 0.0), ("timeout", "long")])
def test_wrong_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value!r}"):
        counting(1, **{argument: value})
    with pytest.raises(ValueError, match=r"len\(env_fns\)=0"):
        counting(0)

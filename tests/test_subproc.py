"""Workers that die or hang are named, and a training in worker processes is resumed exactly."""

import gc
import multiprocessing.connection
import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
from resumable_training import fingerprint
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_rainbow import RainbowDQN
from sb3_rainbow.checkpoint import ResumableCheckpointCallback, load
from sb3_rainbow.envs import SubprocVecEnv, WorkerError, subproc


def make_env(n_envs: int = 2, timeout: float = 60) -> SubprocVecEnv:
    # A lambda of the test, not a name: workers do not import the test
    return make_vec_env("CartPole-v1", n_envs, seed=3, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"timeout": timeout})


def test_it_gives_what_sb3s_gives():
    ours, theirs = make_env(), make_vec_env("CartPole-v1", 2, seed=3)
    assert (ours.reset() == theirs.reset()).all()
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(2, size=2)
        for x, y in zip(ours.step(actions)[:3], theirs.step(actions)[:3], strict=True):
            assert (x == y).all()
    assert ours.env_method("get_wrapper_attr", "spec")[0].id == "CartPole-v1"
    ours.set_attr("difficulty", 3)
    assert ours.get_attr("difficulty") == [3, 3]
    ours.close()
    ours.close()


def test_a_dead_worker_is_named_and_the_last_checkpoint_stands(tmp_path):
    env = make_env()
    model = RainbowDQN("MlpPolicy", env, learning_starts=20, seed=0)
    model.learn(80, callback=ResumableCheckpointCallback(40, tmp_path))
    os.kill(env.processes[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=rf"worker 1 \(process {env.processes[1].pid}\) died with the exit code -9"):
        model.learn(200, reset_num_timesteps=False)
    with pytest.raises(WorkerError, match="worker 1 "):  # not the answer to the step before
        env.get_attr("spec", indices=0)
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 5
    assert load(tmp_path).num_timesteps == 80


def test_a_hanging_worker_is_named_within_the_timeout():
    env = make_env()
    env.reset()
    for remote in env.remotes:
        remote.timeout = 1
    os.kill(env.processes[0].pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"worker 0 .* did not answer for 1 s"):
        env.step([0, 0])
    assert time.monotonic() - start < 5
    with pytest.raises(WorkerError, match="worker 0"):  # not a late answer, as that of now
        env.step([0, 0])
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 5
    assert not any(process.is_alive() for process in env.processes)


def test_an_answer_that_was_not_waited_for_is_not_taken_for_the_next():
    env, other = make_env(), make_env()
    env.reset()
    env.step_async([0, 1])  # and interrupted
    assert env.get_attr("spec")[1].id == "CartPole-v1"
    other.reset()
    other.step([0, 1])
    env.step_async([1, 0])
    other.step([1, 0])
    assert (env.reset() == other.reset()).all()
    assert (env.step([0, 0])[0] == other.step([0, 0])[0]).all()
    env.close()
    other.close()


def test_time_in_which_this_process_was_stopped_does_not_count(monkeypatch):
    env = make_env(timeout=30)
    env.reset()
    waits, clock, stopped = [], time.monotonic, [0]

    def wait(ends, timeout):
        waits.append(timeout)
        if len(waits) > 1:
            return multiprocessing.connection.wait(ends, timeout)
        stopped[0] = 600
        return []

    monkeypatch.setattr(subproc, "wait", wait)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + stopped[0])
    env.step([0, 0])
    assert waits[0] <= subproc.SPELL
    env.close()


def test_an_environment_that_is_dropped_ends_its_workers():
    env = make_env()
    env.reset()
    processes = env.processes
    gc.disable()
    try:
        del env
        for process in processes:
            process.join(10)
    finally:
        gc.enable()
    assert not any(process.is_alive() for process in processes)


def fails() -> gym.Env:
    raise RuntimeError("no such ROM")


def hangs() -> gym.Env:
    time.sleep(600)
    raise AssertionError


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_a_worker_whose_environment_cannot_be_made_is_named(start_method, monkeypatch):
    for env_fn in (fails, hangs):
        monkeypatch.setattr(env_fn, "__module__", "__main__")  # workers do not import the test
    works = lambda: gym.make("CartPole-v1")  # noqa: E731
    before = set(multiprocessing.active_children())
    for i, env_fns in enumerate(([fails, works], [works, fails])):
        with pytest.raises(WorkerError, match=f"worker {i} .* died with the exit code 1"):
            SubprocVecEnv(env_fns, start_method, timeout=1)
    monkeypatch.setattr(subproc, "STARTING", 2)
    start = time.monotonic()
    with pytest.raises(WorkerError, match="worker 0 .* did not answer for 2 s"):
        SubprocVecEnv([hangs, works], start_method, timeout=1)
    assert time.monotonic() - start < 2 + subproc.CLOSING + 5
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize, lambda env: VecFrameStack(env, 2)])
def test_a_training_in_workers_is_resumed_exactly(tmp_path, wrap):
    settings = {"learning_starts": 20, "seed": 0, "buffer_size": 200}
    env = wrap(make_env())
    whole = RainbowDQN("MlpPolicy", env, **settings)
    whole.learn(240, callback=ResumableCheckpointCallback(100, tmp_path, keep=9))
    env.close()
    env = wrap(make_env())
    resumed = load(sorted(tmp_path.iterdir())[0], env)
    assert resumed.num_timesteps < 200
    resumed.learn(240 - resumed.num_timesteps, reset_num_timesteps=False)
    assert fingerprint(resumed) == fingerprint(whole)
    env.close()


class Opaque(gym.Wrapper):
    def __init__(self, env):
        super().__init__(env)
        self.secret = iter(range(9))


def test_a_worker_whose_environment_cannot_be_read_lives_on(tmp_path):
    env = SubprocVecEnv([lambda: Opaque(gym.make("CartPole-v1"))])
    model = RainbowDQN("MlpPolicy", env, learning_starts=20, seed=0)
    model.learn(60, callback=ResumableCheckpointCallback(20, tmp_path))
    load(tmp_path, env).learn(20, reset_num_timesteps=False)
    env.close()


def test_a_timeout_must_be_positive():
    with pytest.raises(ValueError, match="timeout=0"):
        make_env(timeout=0)

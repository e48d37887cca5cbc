"""Shared fixtures."""

import itertools
import multiprocessing
import os
import random

# Two cores, and often two test processes: more threads only wait for each other. Before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers are otherwise the last to run where both cores are busy, and take too long to start
os.environ.setdefault("RAY_worker_niceness", "0")

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils import seeding
from hypothesis import settings

from sb3_rainbow.replay import arrays

pytest.register_assert_rewrite("zoo_acceptance")
gym.register_envs(ale_py)
th.set_num_threads(1)
# The server imports them once; else every worker of every SubprocVecEnv does
multiprocessing.set_forkserver_preload(["sb3_rainbow.envs", "stable_baselines3.common.vec_env.subproc_vec_env"])
# The same examples each time; make test-slow draws others
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

#: The files that take longest, which begin first, so that the two processes end at the same time
LONGEST = [
    *("test_sweep", "test_checkpoint", "test_zoo_wheel", "test_ray_vec_env", "test_learning_benchmarks", "test_zoo_editable"),
    *("test_readme", "test_subproc", "test_fuzz", "test_run", "test_export", "test_cliffwalk"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws, whatever tests came before, from environments and spaces without a seed too."""
    random.seed(0)
    np.random.seed(0)
    th.manual_seed(0)
    seeds, np_random = itertools.count(), seeding.np_random
    monkeypatch.setattr(seeding, "np_random", lambda seed=None: np_random(next(seeds) if seed is None else seed))


@pytest.fixture(params=["numpy", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test of the replay on NumPy's arrays, as on a CPU, and on torch's tensors, as on CUDA (but on the CPU)."""
    monkeypatch.setattr(arrays, "on_numpy", lambda device: request.param == "numpy")
    return request.param

"""Shared fixtures."""

import itertools
import random

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils import seeding

from sb3_rainbow.replay import arrays

pytest.register_assert_rewrite("zoo_acceptance")
gym.register_envs(ale_py)
# Two cores, and often two test processes: more threads only wait for each other
th.set_num_threads(1)


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

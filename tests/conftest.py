"""Shared fixtures."""

import random

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_rainbow.replay import arrays

pytest.register_assert_rewrite("zoo_acceptance")
gym.register_envs(ale_py)
# Two cores, and often two test processes: more threads only wait for each other
th.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same draws, whatever tests came before."""
    random.seed(0)
    np.random.seed(0)
    th.manual_seed(0)


@pytest.fixture(params=["numpy", "torch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test of the replay on NumPy's arrays, as on a CPU, and on torch's tensors, as on CUDA (but on the CPU)."""
    monkeypatch.setattr(arrays, "on_numpy", lambda device: request.param == "numpy")
    return request.param

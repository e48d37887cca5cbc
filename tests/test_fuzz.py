"""Any arguments: a model that runs, or an error that names the argument; and memory that does not grow."""

import math
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import gymnasium as gym
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_rainbow import RainbowDQN

#: For each argument, values that are right and values that are wrong
ARGUMENTS = {
    "learning_rate": ([1e-4, 1e-2, 0.0], []),
    "buffer_size": ([1, 2, 7, 150, 1000], [0, -1, 2.5]),
    "learning_starts": ([0, 1, 50, 500], [-1, 0.5]),
    "batch_size": ([1, 3, 32, 200], [0, -3, 1.5]),
    "tau": ([1.0, 0.5, 0.0], [-0.1, 1.1, math.nan]),
    "gamma": ([0.99, 1.0, 0.0], [-0.5, 1.01, math.inf]),
    "train_freq": ([1, 4, 70, (1, "episode"), (3, "step")], [0, -2, (1, "year")]),
    "gradient_steps": ([1, 2, -1, 0], [-2, 1.5]),
    "n_steps": ([1, 3, 10, 300], [0, -1, 2.5]),
    "target_update_interval": ([1, 10, 1000], [0]),
    "exploration_fraction": ([0, 0.1, 1.0], [-1, 2]),
    "exploration_initial_eps": ([1.0, 0.0], [1.5]),
    "exploration_final_eps": ([0.05, 0.0], [-0.5]),
    "max_grad_norm": ([10, 0.1, math.inf], [0, -1, math.nan]),
    "double_q": ([True, False], [None, 2, "yes"]),
    "dueling": ([True, False], ["no"]),
    "noisy": (["factorised", "independent", False], [True, "gaussian"]),
    "sigma0": ([None, 0.5, 0.017], [0, -0.5, math.nan]),
    "prioritized": ([True, False], [1, None]),
    "alpha": ([0.0, 0.5, 1.0], [-0.1, 1.5]),
    "beta0": ([0.0, 0.4, 1.0], [-0.1, 2]),
    "n_atoms": ([1, 2, 51], [0, 2.5]),
    "v_min": ([-10.0, 0, -1e4], [None, -math.inf, math.nan]),
    "v_max": ([10.0, 1, 1e4], [-2e4, math.inf]),
    "storage_device": (["cpu", "auto"], []),
    "amp": ([None, "bf16"], ["fp16", True]),
    "cuda_graph": ([False, True], ["yes", None]),
    "compile": ([False], ["yes", None]),  # True takes its time: test_speed_options.py
    "policy_kwargs": ([None, {"net_arch": []}, {"net_arch": [8, 8]}], []),
}


@st.composite
def arguments(draw) -> tuple[dict, list[str]]:
    """Some arguments, and the names of those that are wrong: in most draws none."""
    names = draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), max_size=8, unique=True))
    may_be_wrong = draw(st.integers(0, 3)) == 0
    chosen, wrong = {}, []
    for name in names:
        right_values, wrong_values = ARGUMENTS[name]
        is_wrong = may_be_wrong and bool(wrong_values) and draw(st.booleans())
        chosen[name] = draw(st.sampled_from(wrong_values if is_wrong else right_values))
        wrong += [name] * is_wrong
    return chosen, wrong


def try_out(case: tuple[dict, list[str]]) -> None:
    chosen, wrong = case
    if wrong:
        with pytest.raises(ValueError, match="|".join(wrong)):
            RainbowDQN("MlpPolicy", "CartPole-v1", **chosen)
    else:
        model = RainbowDQN("MlpPolicy", "CartPole-v1", seed=0, **({"learning_starts": 20} | chosen))
        model.learn(200)
        assert model.num_timesteps >= 200
        assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


fuzz = settings(deadline=None, suppress_health_check=list(HealthCheck))


@settings(fuzz, max_examples=25)
@given(arguments())
@example(({"buffer_size": 1, "batch_size": 32, "n_steps": 10, "learning_starts": 0}, []))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_arguments_run_or_are_named(case):
    try_out(case)


@pytest.mark.slow
@settings(fuzz, max_examples=300)
@given(arguments())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_three_hundred_sets_of_arguments_run_or_are_named(case):
    try_out(case)


def growth(first: int, last: int) -> float:
    """Megabytes by which the process grows between two numbers of steps of one training."""
    # Without Monitor: it keeps the returns, lengths and times of all episodes, some 100 bytes for each
    env = DummyVecEnv([lambda: gym.make("CartPole-v1")])
    model = RainbowDQN("MlpPolicy", env, buffer_size=first // 2, learning_starts=100, train_freq=64, seed=0)
    process = psutil.Process(os.getpid())
    model.learn(first)
    before = process.memory_info().rss
    model.learn(last - first, reset_num_timesteps=False)
    return (process.memory_info().rss - before) / 1e6


def growth_alone(first: int, last: int) -> float:
    # In a process of its own: what other tests left behind is no part of it
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(growth, first, last).result()


def test_memory_does_not_grow_once_the_buffer_is_full():
    assert growth_alone(6_000, 16_000) < 5


@pytest.mark.slow
def test_memory_does_not_grow_in_a_million_steps():
    assert growth_alone(200_000, 1_000_000) < 5

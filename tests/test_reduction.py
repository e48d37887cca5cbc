"""With every part off, RainbowDQN is SB3's DQN, bit for bit; and the same seed gives the same run."""

import inspect

import numpy as np
import pytest
import torch as th
from resumable_training import fingerprint
from small_models import OFF
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_rainbow import RainbowDQN

SETTINGS = {"learning_starts": 100, "target_update_interval": 50, "learning_rate": 1e-3, "policy_kwargs": {"net_arch": [32]}}


@pytest.mark.parametrize("seed", [0, 1])
def test_all_parts_off_is_sb3s_dqn_after_1500_steps(seed):
    ours = RainbowDQN("MlpPolicy", "CartPole-v1", seed=seed, **SETTINGS, **OFF).learn(1500)
    theirs = DQN("MlpPolicy", "CartPole-v1", seed=seed, **SETTINGS).learn(1500)
    assert fingerprint(ours) == fingerprint(theirs)


def test_all_parts_off_is_sb3s_dqn_with_its_own_defaults_too():
    ours = RainbowDQN("MlpPolicy", "CartPole-v1", seed=3, buffer_size=1000, **OFF).learn(500)
    theirs = DQN("MlpPolicy", "CartPole-v1", seed=3, buffer_size=1000).learn(500)
    assert fingerprint(ours) == fingerprint(theirs)


@pytest.mark.parametrize(
    ("policy", "make", "more"),
    [
        ("CnnPolicy", lambda: FakeImageEnv(36, 36, 36, 4, channel_first=True), {}),
        ("MultiInputPolicy", lambda: SimpleMultiObsEnv(random_start=False), {}),
        ("MlpPolicy", lambda: VecNormalize(make_vec_env("CartPole-v1")), {}),
        ("MlpPolicy", lambda: make_vec_env("CartPole-v1"), {"max_grad_norm": 0.1}),
    ],
    ids=["images", "dict", "normalised", "clipped"],
)
def test_all_parts_off_is_sb3s_dqn_for_every_policy(policy, make, more):
    states = []
    for cls, off in ((RainbowDQN, OFF), (DQN, {})):
        np.random.seed(0)  # the environment with dicts draws from it when it is made
        env = make()
        env.observation_space.seed(0)
        model = cls(policy, env, seed=0, learning_starts=20, buffer_size=200, target_update_interval=20, **more, **off)
        states.append(model.learn(120).policy.state_dict())
        assert model._n_updates > 0
    assert all(th.equal(states[0][name], states[1][name]) for name in states[1])


def test_n_step_returns_from_sb3s_buffer_are_sb3s_dqn():
    kwargs = SETTINGS | {"gamma": 0.9, "policy_kwargs": {"net_arch": [32], "optimizer_kwargs": {"eps": 1e-8}}}
    buffer_kwargs = {"n_steps": 3, "gamma": 0.9}
    ours = RainbowDQN(
        "MlpPolicy",
        "CartPole-v1",
        seed=0,
        replay_buffer_class=NStepReplayBuffer,
        replay_buffer_kwargs=buffer_kwargs,
        **kwargs,
        **OFF,
    ).learn(1000)
    theirs = DQN("MlpPolicy", "CartPole-v1", seed=0, n_steps=3, **kwargs).learn(1000)
    assert fingerprint(ours) == fingerprint(theirs)


@pytest.mark.parametrize("n_envs", [1, 4])
def test_the_same_seed_gives_the_same_run(n_envs):
    runs = []
    for _ in range(2):
        model = RainbowDQN("MlpPolicy", make_vec_env("CartPole-v1", n_envs), seed=5, **SETTINGS)
        runs.append(fingerprint(model.learn(600)))
    assert runs[0] == runs[1]
    assert fingerprint(RainbowDQN("MlpPolicy", make_vec_env("CartPole-v1", n_envs), seed=6, **SETTINGS).learn(600)) != runs[0]


def test_the_replays_own_generator_is_part_of_the_run_and_has_its_seed():
    runs = []
    for kwargs in ({}, {"seed": 5}, {"seed": 2}):
        model = RainbowDQN("MlpPolicy", "CartPole-v1", seed=5, replay_buffer_kwargs=kwargs, **SETTINGS)
        runs.append(fingerprint(model.learn(400)))
    assert runs[0] == runs[1] != runs[2]


def test_set_random_seed_restarts_the_replays_generator_too():
    model = RainbowDQN("MlpPolicy", "CartPole-v1", learning_starts=100, seed=0).learn(30)
    draws = []
    for seed in (7, 7, 8):
        model.set_random_seed(seed)
        draws.append(model.replay_buffer.sample(20).leaf_indices.tolist())
    assert draws[0] == draws[1] != draws[2]


def test_arguments_are_those_of_sb3s_dqn_in_its_order_and_with_its_defaults():
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (RainbowDQN, DQN))
    names = [name for name in theirs if name != "_init_setup_model"]
    assert list(ours)[: len(names)] == names
    assert [name for name in names if ours[name].default != theirs[name].default] == ["n_steps"]


def test_without_a_seed_torchs_global_seed_decides():
    draws = []
    for seed in (1, 1, 2):
        th.manual_seed(seed)
        model = RainbowDQN("MlpPolicy", "CartPole-v1", learning_starts=100)
        model.learn(30)
        draws.append(model.replay_buffer.sample(20).leaf_indices.tolist())
    assert draws[0] == draws[1] != draws[2]

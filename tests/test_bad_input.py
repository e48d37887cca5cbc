"""Mistakes of users: an early error that names the argument and the value; nothing that is not finite enters a network."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.dqn.policies import MlpPolicy as SB3Policy

from sb3_rainbow import RainbowDQN


class OfOneStep(ReplayBuffer):
    """A user's, without windows."""


class FromMinusOne(FakeImageEnv):
    """Its actions are -1, 0 and 1."""

    def __init__(self):
        super().__init__(3)
        self.observation_space = spaces.Box(-1, 1, (2,))
        self.action_space = spaces.Discrete(3, start=-1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_steps", 0),
        ("n_steps", 2.0),
        ("alpha", -0.1),
        ("alpha", 1.1),
        ("alpha", "lin_0.5"),
        ("beta0", 1.5),
        ("beta0", math.nan),
        ("batch_size", 0),
        ("buffer_size", 0),
        ("learning_starts", -1),
        ("target_update_interval", 0),
        ("train_freq", 0),
        ("train_freq", 0.5),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", 2**32),
        ("storage_device", "gpu"),
        ("storage_device", 3),
        ("gradient_steps", -2),
        ("gamma", 1.01),
        ("tau", -1),
        ("max_grad_norm", 0),
        ("exploration_fraction", -0.1),
        ("exploration_initial_eps", 2),
        ("exploration_final_eps", -0.5),
        ("sigma0", 0.0),
        ("sigma0", -1),
        ("sigma0", math.inf),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("learning_rate", "abc"),
        ("stats_window_size", -1),
        ("policy_kwargs", 5),
        ("n_atoms", 0),
        ("n_atoms", 51.0),
        ("v_min", math.nan),
        ("v_min", 10.0),
        ("v_max", math.inf),
        ("v_min", None),  # v_max is a number
        ("v_max", None),
        ("noisy", "gaussian"),
        ("noisy", True),
        ("dueling", "yes"),
        ("double_q", 1),
        ("prioritized", None),
        ("amp", "fp16"),
        ("amp", True),
        ("compile", "yes"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_before_anything_is_built(argument, value, monkeypatch):
    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: pytest.fail("an environment was built"))
    with pytest.raises(ValueError, match=rf"^{argument}={value!r}: must be"):
        RainbowDQN("MlpPolicy", "CartPole-v1", **{argument: value})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"policy": "RnnPolicy"}, ValueError, "RnnPolicy"),
        ({"policy": SB3Policy}, ValueError, "policy=.*DQNPolicy.*must be"),
        ({"n_step": 3}, TypeError, "n_step"),
        ({"train_freq": (2, "minutes")}, ValueError, "minutes"),
        ({"train_freq": ()}, ValueError, r"train_freq=\(\): must be"),
        ({"train_freq": [4, "step"]}, ValueError, r"train_freq=\[4, 'step'\]: must be an integer, or a tuple"),
        ({"train_freq": (0, "step")}, ValueError, r"train_freq\[0\]=0: must be"),
        ({"replay_buffer_kwargs": {"seed": -1}}, ValueError, "seed=-1: must be"),
        ({"replay_buffer_kwargs": {"storage_device": "gpu"}}, ValueError, "storage_device='gpu': must be"),
        (
            {"policy_kwargs": {"n_atoms": 51}},
            ValueError,
            r"policy_kwargs=.*must not have 'n_atoms', an argument of RainbowDQN",
        ),
        ({"replay_buffer_kwargs": "n_steps"}, ValueError, "replay_buffer_kwargs='n_steps': must be a dict"),
        ({"replay_buffer_class": "HerReplayBuffer"}, ValueError, "replay_buffer_class='HerReplayBuffer': must be a class"),
        ({"env": FromMinusOne()}, ValueError, r"action_space=Discrete\(3, start=-1\): must start at 0"),
        ({"n_atoms": 51, "v_min": 1e8, "v_max": 1e8 + 1}, ValueError, r"v_max=100000001.0: must be farther from v_min"),
        (
            {
                "policy": "CnnPolicy",
                "env": FakeImageEnv(4),
                "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 256}},
            },
            ValueError,
            r"features_extractor_kwargs=\{'features_dim': 256\}: NatureConvolutions has no linear layer, set net_arch",
        ),
        ({"policy_kwargs": {"net_arch": [64, -3]}}, ValueError, r"net_arch=\[64, -3\]: must be a list of integers"),
        ({"policy_kwargs": {"net_arch": np.array([64, 64])}}, ValueError, r"net_arch=array\(\[64, 64\]\): must be a list of"),
        ({"policy_kwargs": {"net_arch": [2.5]}}, ValueError, r"net_arch=\[2.5\]: must be a list of integers"),
        ({"policy_kwargs": {"net_arch": {"pi": [64]}}}, ValueError, r"net_arch=\{'pi': \[64\]\}: must be a list of integers"),
        ({"optimize_memory_usage": True}, ValueError, "optimize_memory_usage=True"),
        (
            {"storage_device": "cuda", "replay_buffer_class": NStepReplayBuffer},
            ValueError,
            "storage_device='cuda': must be 'cpu'",
        ),
        ({"storage_device": "cuda", "prioritized": False, "n_steps": 1}, ValueError, "storage_device='cuda': must be 'cpu'"),
        ({"replay_buffer_kwargs": {"weight_norm": "max"}}, ValueError, "weight_norm='max'"),
    ],
)
def test_other_mistakes_name_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        RainbowDQN(**{"policy": "MlpPolicy", "env": "CartPole-v1"} | arguments)


def test_a_discount_that_the_replay_does_not_take_is_named():
    own = {"replay_buffer_class": NStepReplayBuffer, "buffer_size": 50}
    with pytest.warns(UserWarning, match=r"gamma=0.9 has no effect with .*NStepReplayBuffer.*, whose own is 0.99"):
        RainbowDQN("MlpPolicy", "CartPole-v1", gamma=0.9, **own)
    RainbowDQN("MlpPolicy", "CartPole-v1", gamma=0.9, replay_buffer_kwargs={"gamma": 0.9}, **own)  # warnings are errors


class Extended(RainbowDQN):
    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)


def test_a_subclass_may_pass_its_arguments_on(tmp_path):
    model = Extended("MlpPolicy", "CartPole-v1", prioritized=False, n_steps=1, gamma=0.9, buffer_size=50)
    model.save(tmp_path / "extended")
    assert Extended.load(tmp_path / "extended").gamma == 0.9
    with pytest.warns(UserWarning, match="gamma=0.9 has no effect"):
        RainbowDQN("MlpPolicy", "CartPole-v1", gamma=0.9, replay_buffer_class=NStepReplayBuffer, buffer_size=50)
    Extended("MlpPolicy", "CartPole-v1", gamma=0.9, replay_buffer_class=NStepReplayBuffer, buffer_size=50)


def test_n_steps_that_the_replay_does_not_take_are_named():
    own = {"replay_buffer_class": NStepReplayBuffer, "buffer_size": 50}
    with pytest.warns(UserWarning, match=r"n_steps=10 has no effect with .*NStepReplayBuffer.*, whose own is 3"):
        RainbowDQN("MlpPolicy", "CartPole-v1", n_steps=10, **own)
    RainbowDQN("MlpPolicy", "CartPole-v1", n_steps=10, replay_buffer_kwargs={"n_steps": 10}, **own)
    with pytest.warns(UserWarning, match=r"n_steps=10 has no effect with .*OfOneStep.*, whose own is 1"):
        RainbowDQN("MlpPolicy", "CartPole-v1", n_steps=10, replay_buffer_class=OfOneStep, buffer_size=50)
    for n_steps in ({}, {"n_steps": 1}):
        RainbowDQN("MlpPolicy", "CartPole-v1", replay_buffer_class=OfOneStep, buffer_size=50, **n_steps)


@pytest.mark.parametrize("setting", [{"alpha": 0.9}, {"beta0": 0.1}], ids=str)
def test_settings_of_priorities_that_the_replay_does_not_have_are_named(setting):
    own = {"replay_buffer_class": OfOneStep, "buffer_size": 50, "n_steps": 1}
    ((name, value),) = setting.items()
    with pytest.warns(UserWarning, match=rf"{name}={value} has no effect with .*OfOneStep.*, which has no priorities"):
        RainbowDQN("MlpPolicy", "CartPole-v1", **own, **setting)
    RainbowDQN("MlpPolicy", "CartPole-v1", **own, **setting, prioritized=False)  # warnings are errors
    RainbowDQN("MlpPolicy", "CartPole-v1", **own)


def test_a_network_that_cannot_be_built_leaves_the_class_usable():
    with pytest.raises(TypeError):
        RainbowDQN("MlpPolicy", "CartPole-v1", policy_kwargs={"activation_fn": 3})
    assert RainbowDQN("MlpPolicy", "CartPole-v1").policy.action_space == spaces.Discrete(2)


def test_the_wrong_policy_for_a_dict_space_is_sb3s_own_error():
    from stable_baselines3.common.envs import SimpleMultiObsEnv

    with pytest.raises(ValueError, match="MultiInputPolicy"):
        RainbowDQN("MlpPolicy", SimpleMultiObsEnv())


class Spoiled(gym.Wrapper):
    """One reward or observation, at one step, is not finite."""

    def __init__(self, env: gym.Env, reward: float = 1.0, obs: float = 0.0, at: int = 60) -> None:
        super().__init__(env)
        self.spoil, self.at, self.steps = (reward, obs), at, 0

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self.steps == self.at:
            reward = self.spoil[0]
            obs = np.full_like(obs, self.spoil[1]) if not math.isfinite(self.spoil[1]) else obs
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("spoil", "message"),
    [({"reward": math.nan}, "reward"), ({"reward": -math.inf}, "reward"), ({"obs": math.nan}, "observation")],
    ids=str,
)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_training_stops_at_the_next_update_and_names_what_is_not_finite(spoil, message, n_envs):
    env = make_vec_env(lambda: Spoiled(gym.make("CartPole-v1"), **spoil), n_envs)
    model = RainbowDQN("MlpPolicy", env, learning_starts=20, train_freq=4, seed=0)
    with pytest.raises(ValueError, match=f"{message}.*(nan|inf)"):
        model.learn(2000)
    assert 60 <= model.num_timesteps // n_envs < 68
    assert all(p.isfinite().all() for p in model.policy.parameters())
    assert all(v.isfinite().all() for s in model.policy.optimizer.state.values() for v in s.values())


@pytest.mark.parametrize("spoil", [{"reward": math.nan}, {"reward": -math.inf}, {"obs": math.nan}, {"obs": math.inf}], ids=str)
@pytest.mark.parametrize("n_atoms", [1, 51])
def test_with_sb3s_buffer_it_is_named_when_it_is_sampled(spoil, n_atoms):
    env = Spoiled(gym.make("CartPole-v1"), **spoil)
    settings = {"learning_starts": 20, "replay_buffer_class": ReplayBuffer, "buffer_size": 200, "seed": 0}
    model = RainbowDQN("MlpPolicy", env, n_atoms=n_atoms, **settings)
    with pytest.raises(ValueError, match="(rewards|observations) of the sampled batch contain (nan|-?inf)"):
        model.learn(2000)
    assert all(p.isfinite().all() for p in model.policy.parameters())


def test_an_infinite_observation_is_named_too():
    model = RainbowDQN(
        "MlpPolicy", Spoiled(gym.make("CartPole-v1"), obs=math.inf), learning_starts=20, seed=0, buffer_size=100
    )
    with pytest.raises(ValueError, match="observations of the sampled batch contain inf"):
        model.learn(2000)
    assert all(p.isfinite().all() for p in model.policy.parameters())


def test_overflowing_values_are_named_and_not_learned_from():
    model = RainbowDQN("MlpPolicy", "CartPole-v1", learning_starts=20, seed=0)
    model.learn(21)
    before = [p.clone() for p in model.q_net.parameters()]
    with th.no_grad():
        model.q_net_target.value_stream[-1].bias_mu.fill_(math.inf)
    with pytest.raises(ValueError, match="td_errors of the sampled batch contain inf"):
        model.train(1, batch_size=8)
    assert all(th.equal(p, q) for p, q in zip(before, model.q_net.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_named_and_not_learned_from():
    model = RainbowDQN("MlpPolicy", "CartPole-v1", learning_starts=20, seed=0).learn(21)
    before = [p.clone() for p in model.policy.parameters()]
    next(model.q_net.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(ValueError, match="the gradient is not finite"):
        model.train(1, batch_size=8)
    assert all(th.equal(p, q) for p, q in zip(before, model.policy.parameters(), strict=True))


def test_plain_dqn_really_is_poisoned_by_one_nan():
    """What the guard is for: if SB3 ever stops this itself, it can go."""
    model = DQN("MlpPolicy", Spoiled(gym.make("CartPole-v1"), reward=math.nan), learning_starts=20, buffer_size=100, seed=0)
    model.learn(400)
    assert any(p.isnan().any() for p in model.policy.parameters())

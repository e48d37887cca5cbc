"""SB3's files: models, parameters, replay buffers, networks."""

import io
import pathlib
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv

from sb3_rainbow import PrioritizedNStepReplayBuffer, RainbowDQN
from sb3_rainbow.policies import DuelingQNetwork, MlpPolicy

SMALL = {"learning_starts": 20, "policy_kwargs": {"net_arch": [16]}, "seed": 0}
OBS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


def predictions(model, obs=OBS) -> list[int]:
    return model.predict(obs, deterministic=True)[0].tolist()


def state(model: RainbowDQN) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


@pytest.mark.parametrize(
    ("arguments", "to"),
    [
        ({}, "str"),
        ({"dueling": False}, "path"),
        ({"noisy": "independent"}, "file"),
        ({"noisy": False, "n_steps": 7, "beta0": 0.7}, "str"),
        ({"double_q": False, "alpha": 0.3, "sigma0": 0.2, "storage_device": "auto"}, "path"),
        ({"prioritized": False, "n_atoms": 21, "v_min": 0, "v_max": 30.5}, "file"),
        ({"n_atoms": 20, "v_min": None, "v_max": None}, "str"),
    ],
    ids=str,
)
def test_a_loaded_model_is_the_saved_one(tmp_path, arguments, to):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL, **arguments).learn(100)
    target = {"str": str(tmp_path / "model"), "path": tmp_path / "model.zip", "file": io.BytesIO()}[to]
    model.save(target)
    if to == "file":
        target.seek(0)
    loaded = RainbowDQN.load(target, env=gym.make("CartPole-v1"))
    assert predictions(loaded) == predictions(model)
    with th.no_grad():
        obs = th.from_numpy(OBS)
        assert th.equal(loaded.q_net(obs), model.q_net(obs))
        assert th.equal(loaded.q_net_target(obs), model.q_net_target(obs))
    parts = ("n_steps", "double_q", "dueling", "noisy", "sigma0", "prioritized", "alpha", "beta0", "n_atoms", "v_min", "v_max")
    for name in (*parts, "storage_device"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.exploration_rate == model.exploration_rate
    moments = [opt.state_dict()["state"] for opt in (model.policy.optimizer, loaded.policy.optimizer)]
    assert moments[0].keys() == moments[1].keys()
    assert all(th.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])
    loaded.learn(50, reset_num_timesteps=False)
    assert loaded.num_timesteps == 152  # the next multiple of train_freq


def test_settings_given_to_load_are_used_and_checked(tmp_path):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL).learn(50)
    model.save(tmp_path / "model")
    loaded = RainbowDQN.load(tmp_path / "model", n_steps=5, alpha=0.9, gamma=0.5, buffer_size=77)
    assert (loaded.replay_buffer.n_steps, loaded.replay_buffer.alpha) == (5, 0.9)
    assert (loaded.replay_buffer.gamma, loaded.replay_buffer.buffer_size) == (0.5, 77)
    assert RainbowDQN.load(tmp_path / "model", replay_buffer_kwargs=None).replay_buffer.n_steps == model.n_steps
    with pytest.raises(ValueError, match="n_steps=0"):
        RainbowDQN.load(tmp_path / "model", n_steps=0)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        RainbowDQN.load(tmp_path / "model", env=gym.make("MountainCar-v0"))


@pytest.mark.parametrize(
    ("name", "value"), [("v_max", 10.0), ("n_atoms", 1), ("noisy", "independent"), ("dueling", False), ("sigma0", 5.0)]
)
def test_load_changes_nothing_that_the_parameters_were_learned_with(tmp_path, name, value):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", n_atoms=11, v_min=0, v_max=100, **SMALL)
    model.save(tmp_path / "model")
    with pytest.raises(
        ValueError, match=rf"^{name}={value!r}: must be {getattr(model, name)!r}, as in the model that was saved"
    ):
        RainbowDQN.load(tmp_path / "model", **{name: value})
    same = RainbowDQN.load(tmp_path / "model", n_atoms=11, v_min=0.0, v_max=100.0, sigma0=None)
    assert same.sigma0 == model.sigma0
    assert predictions(same) == predictions(model)


def test_a_model_loads_for_another_number_of_environments_and_none(tmp_path):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL).learn(50)
    model.save(tmp_path / "model")
    assert predictions(RainbowDQN.load(tmp_path / "model")) == predictions(model)
    loaded = RainbowDQN.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 3)).learn(60)
    assert loaded.replay_buffer.n_envs == 3


def test_a_saved_model_is_small_however_large_its_buffer_is(tmp_path):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", buffer_size=1_000_000, **SMALL).learn(50)
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").stat().st_size < 200_000


def test_every_float_of_the_state_survives_randomising_saving_and_loading(tmp_path):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL)
    with th.no_grad():
        for value in model.policy.state_dict().values():
            value.copy_(th.randn_like(value))
    before = state(model)
    model.save(tmp_path / "model")
    after = state(RainbowDQN.load(tmp_path / "model"))
    assert before.keys() == after.keys()
    assert all(th.equal(before[name], after[name]) for name in before)


def test_parameters_can_be_read_and_set():
    model, other = (RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL | {"seed": seed}) for seed in (0, 1))
    assert predictions(model) != predictions(other) or not th.equal(
        *map(lambda m: next(m.policy.parameters()), (model, other))
    )
    other.set_parameters(model.get_parameters())
    assert all(th.equal(p, q) for p, q in zip(model.policy.parameters(), other.policy.parameters(), strict=True))
    with pytest.raises(ValueError, match="Key nonsense"):
        other.set_parameters({"nonsense": {}})
    vector = model.policy.parameters_to_vector()
    other.policy.load_from_vector(vector * 0)
    assert (other.policy.parameters_to_vector() == 0).all()


@pytest.mark.parametrize("arguments", [{}, {"dueling": False}, {"dueling": False, "noisy": False}], ids=str)
def test_a_network_and_a_policy_can_be_saved_alone(tmp_path, arguments):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL, **arguments)
    obs = th.from_numpy(OBS)
    model.q_net.save(str(tmp_path / "q_net"))
    q_net = type(model.q_net).load(str(tmp_path / "q_net"), device="cpu")
    assert th.equal(q_net(obs), model.q_net(obs))
    assert isinstance(q_net, DuelingQNetwork) == model.dueling
    model.policy.save(str(tmp_path / "policy"))
    policy = MlpPolicy.load(str(tmp_path / "policy"))
    assert th.equal(policy.q_net(obs), model.q_net(obs))
    assert (policy.dueling, policy.noisy, policy.sigma0) == (model.dueling, model.noisy, model.sigma0)


def test_a_saved_image_policy_gives_the_same_actions(tmp_path):
    env = FakeImageEnv(4, 40, 41, 3)
    model = RainbowDQN("CnnPolicy", env, buffer_size=50, policy_kwargs={"net_arch": [16]})
    model.save(tmp_path / "model")
    obs = np.stack([env.observation_space.sample() for _ in range(5)])
    assert predictions(RainbowDQN.load(tmp_path / "model"), obs) == predictions(model, obs)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("to", ["path", "str", "file"])
def test_a_saved_replay_buffer_is_the_same_when_loaded(tmp_path, n_envs, to):
    env = make_vec_env("CartPole-v1", n_envs)
    model = RainbowDQN("MlpPolicy", env, buffer_size=300, **SMALL).learn(200)
    target = {"str": str(tmp_path / "buffer"), "path": pathlib.Path(tmp_path / "buffer.pkl"), "file": io.BytesIO()}[to]
    model.save_replay_buffer(target)
    old = model.replay_buffer
    model.replay_buffer = None
    if to == "file":
        target.seek(0)
    model.load_replay_buffer(target)
    new = model.replay_buffer
    for name in ("observations", "next_observations", "actions", "rewards"):
        assert (getattr(old, name) == getattr(new, name)).all()
    assert (old._priorities.leaves == new._priorities.leaves).all()
    assert old.sample(30).leaf_indices.tolist() == new.sample(30).leaf_indices.tolist()
    assert new.device == model.device
    # the episodes that were open are closed, as the environments start anew
    assert new.dones[(new.pos - 1) % new.buffer_size].all()
    model.learn(50, reset_num_timesteps=False)


def test_open_episodes_can_be_kept_open(tmp_path):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL).learn(5)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    assert not model.replay_buffer.dones.any()


@pytest.mark.parametrize(
    ("arguments", "n_envs", "message"),
    [
        ({}, 2, "n_envs=1 in the replay buffer loaded: must be 2"),
        ({"n_steps": 5}, 1, "n_steps=3 in the replay buffer loaded: must be 5"),
        ({"gamma": 0.5}, 1, "gamma=0.99 in the replay buffer loaded: must be 0.5"),
        ({"alpha": 0.25}, 1, "alpha=0.5 in the replay buffer loaded: must be 0.25"),
        (
            {"replay_buffer_kwargs": {"weight_norm": "memory"}},
            1,
            "weight_norm=batch .* loaded: must be memory",
        ),
    ],
    ids=str,
)
def test_a_replay_buffer_of_other_settings_is_refused_and_nothing_is_lost(tmp_path, arguments, n_envs, message):
    RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL).learn(30).save_replay_buffer(tmp_path / "buffer")
    model = RainbowDQN("MlpPolicy", make_vec_env("CartPole-v1", n_envs), **SMALL | arguments)
    own = model.replay_buffer
    with pytest.raises(ValueError, match=message):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is own


def test_a_replay_buffer_of_another_space_or_stack_is_refused_with_both(tmp_path):
    RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL).learn(30).save_replay_buffer(tmp_path / "buffer")
    model = RainbowDQN("MlpPolicy", "MountainCar-v0", **SMALL)
    with pytest.raises(ValueError, match=r"observation_space=Box.*\(4,\).* must be Box.*\(2,\)"):
        model.load_replay_buffer(tmp_path / "buffer")
    kwargs = {"buffer_size": 50, "policy_kwargs": {"net_arch": [8]}}
    RainbowDQN("CnnPolicy", FakeImageEnv(4, 40, 40, 4, channel_first=True), **kwargs).save_replay_buffer(tmp_path / "stack")
    model = RainbowDQN("CnnPolicy", FakeImageEnv(4, 40, 40, 2, channel_first=True), **kwargs)
    with pytest.raises(ValueError, match=r"observation_space=Box.*\(4, 40, 40\).* must be Box.*\(2, 40, 40\)"):
        model.load_replay_buffer(tmp_path / "stack")


def test_a_buffer_of_another_class_is_refused_and_the_models_own_stays(tmp_path):
    DQN("MlpPolicy", "CartPole-v1", **SMALL).learn(30).save_replay_buffer(tmp_path / "uniform")
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL).learn(30)
    own = model.replay_buffer
    with pytest.raises(ValueError, match=r"a ReplayBuffer was loaded: must be a PrioritizedNStepReplayBuffer"):
        model.load_replay_buffer(tmp_path / "uniform")
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(ValueError, match=r"path=.*other.pkl.*ReplayBuffer"):
        model.load_replay_buffer(tmp_path / "other.pkl")
    with pytest.raises(FileNotFoundError):
        model.load_replay_buffer(tmp_path / "nowhere.pkl")
    assert model.replay_buffer is own

    model.save_replay_buffer(tmp_path / "prioritized")
    uniform = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL, n_steps=1, prioritized=False)
    with pytest.raises(ValueError, match="a PrioritizedNStepReplayBuffer was loaded: must be a ReplayBuffer"):
        uniform.load_replay_buffer(tmp_path / "prioritized")

    def with_sb3s(n_steps):
        kwargs = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": n_steps, "gamma": 0.99}}
        return RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL, **kwargs).learn(30)

    with_sb3s(7).save_replay_buffer(tmp_path / "seven")
    with_sb3s(7).load_replay_buffer(tmp_path / "seven")
    with pytest.raises(ValueError, match="n_steps=7 in the replay buffer loaded: must be 3"):
        with_sb3s(3).load_replay_buffer(tmp_path / "seven")


def test_other_buffers_are_loaded_as_sb3_does(tmp_path):
    off = {"n_steps": 1, "prioritized": False}
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL, **off).learn(50)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert not isinstance(model.replay_buffer, PrioritizedNStepReplayBuffer)
    other = RainbowDQN("MlpPolicy", "MountainCar-v0", **SMALL, **off)
    with pytest.raises(ValueError, match="observation_space"):
        other.load_replay_buffer(tmp_path / "buffer")


def test_a_buffer_comes_to_the_models_storage_device(tmp_path):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL).learn(50)
    model.replay_buffer.storage_device = th.device("cpu", 0)  # the same memory by another name, for machines without a GPU
    model.save_replay_buffer(tmp_path / "buffer")
    other = RainbowDQN("MlpPolicy", "CartPole-v1", **SMALL)
    other.load_replay_buffer(tmp_path / "buffer")
    assert str(other.replay_buffer.storage_device) == "cpu"
    assert (other.replay_buffer.observations == model.replay_buffer.observations).all()
    drawn, expected = (buffer.sample(30).leaf_indices.tolist() for buffer in (other.replay_buffer, model.replay_buffer))
    assert drawn == expected


@pytest.mark.parametrize(("device", "n_devices"), [("cuda", 0), ("cuda:1", 1)])
def test_a_buffer_that_lay_on_a_missing_gpu_comes_to_the_cpu(monkeypatch, device, n_devices):
    buffer = PrioritizedNStepReplayBuffer(10, spaces.Box(-1, 1, (2,)), spaces.Discrete(2), "cpu")
    buffer.add(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    saved = buffer.__getstate__() | {"storage_device": th.device(device)}
    saved["_state"]["priorities"] |= {"generator": ("cuda", np.zeros(16, np.uint8))}
    monkeypatch.setattr(th.cuda, "device_count", lambda: n_devices)
    loaded = PrioritizedNStepReplayBuffer.__new__(PrioritizedNStepReplayBuffer)
    loaded.__setstate__(saved)
    assert loaded.storage_device == th.device("cpu")
    loaded.sample(4)

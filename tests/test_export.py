"""ONNX files give the Q-values of the mean weights, from raw observations."""

import sys
import warnings

import numpy as np
import onnxruntime
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, IdentityEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import VecNormalize

from sb3_rainbow import PrioritizedNStepReplayBuffer, RainbowDQN, envs
from sb3_rainbow.export import export_onnx, main
from sb3_rainbow.sweep.suite import check_known

# The exporter warns about its own insides
pytestmark = pytest.mark.filterwarnings("ignore")


def run(path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    assert [output.name for output in session.get_outputs()] == ["q_values"]
    return session.run(None, inputs)[0]


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"dueling": False},
        {"noisy": False},
        {"dueling": False, "noisy": False},
        {"n_atoms": 51},
        {"n_atoms": 20, "v_min": None, "v_max": None},
    ],
    ids=str,
)
def test_images_go_in_as_uint8_in_any_batch_size(tmp_path, parts):
    size = 36 if parts else 84
    env = FakeImageEnv(4, size, size, 4, channel_first=True)
    model = RainbowDQN("CnnPolicy", env, sigma0=2.0, **parts)
    model.q_net.reset_noise()  # until it is drawn, both weights are the same
    export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"], "weights lie in a second file"
    for batch in (1, 2, 7):
        obs = np.stack([env.observation_space.sample() for _ in range(batch)])
        q_values = run(tmp_path / "model.onnx", {"observation": obs})
        with th.no_grad():
            np.testing.assert_allclose(q_values, model.q_net(th.from_numpy(obs)), rtol=1e-4, atol=1e-5)
        assert (q_values.argmax(1) == model.predict(obs, deterministic=True)[0]).all()


def test_what_is_not_installed_is_named_with_the_extra_that_has_it(tmp_path, monkeypatch):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", buffer_size=10)
    for module in ("onnxscript", "sb3_rainbow.envs.atari", "rl_zoo3.import_envs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"sb3-rainbow\[onnx\]"):
        export_onnx(model, tmp_path / "model.onnx")
    with pytest.raises(ImportError, match=r"sb3-rainbow\[atari\]"):
        getattr(envs, "AtariVecEnv")  # noqa: B009
    with pytest.raises(ImportError, match=r"sb3-rainbow\[zoo\]"):
        check_known("a suite", {})
    assert not list(tmp_path.iterdir())


def test_the_model_stays_where_it_is_and_normalised_observations_are_warned_of(tmp_path, monkeypatch):
    model = RainbowDQN("MlpPolicy", VecNormalize(make_vec_env("CartPole-v1")))
    before = [tensor.data_ptr() for tensor in model.policy.state_dict().values()]
    move, moves = model.policy.to, []
    model.policy.to = lambda *args: moves.append(args) or move(*args)
    monkeypatch.setattr(th.nn.Module, "cpu", lambda module: module.double().float())  # as from a GPU, with other tensors
    with pytest.warns(UserWarning, match="observations as VecNormalize gives them"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not moves, "buffers on a GPU would be others afterwards, of which SB3 copies the statistics"
    assert before == [tensor.data_ptr() for tensor in model.policy.state_dict().values()]
    model.get_vec_normalize_env().norm_obs = False
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*VecNormalize")
        export_onnx(model, tmp_path / "model.onnx")


def test_vectors_and_numbers_go_in_as_they_are(tmp_path):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", sigma0=2.0)
    model.q_net.reset_noise()
    export_onnx(model, tmp_path / "box.onnx")
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert (run(tmp_path / "box.onnx", {"observation": obs}).argmax(1) == model.predict(obs, deterministic=True)[0]).all()
    model = RainbowDQN("MlpPolicy", IdentityEnv(6))
    export_onnx(model, tmp_path / "discrete.onnx")
    obs = np.arange(6)
    assert (run(tmp_path / "discrete.onnx", {"observation": obs}).argmax(1) == model.predict(obs, deterministic=True)[0]).all()


def test_a_dict_has_an_input_for_every_key(tmp_path):
    env = SimpleMultiObsEnv(random_start=False)
    model = RainbowDQN("MultiInputPolicy", env)
    export_onnx(model, tmp_path / "dict.onnx")
    obs = {key: np.stack([space.sample() for _ in range(3)]) for key, space in model.observation_space.spaces.items()}
    q_values = run(tmp_path / "dict.onnx", obs)
    with th.no_grad():
        expected = model.q_net({key: th.from_numpy(entry) for key, entry in obs.items()})
    np.testing.assert_allclose(q_values, expected, rtol=1e-4, atol=1e-5)


def test_the_command_line_writes_the_file_and_the_model_stays_as_it_was(tmp_path, capsys):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", learning_starts=10).learn(20)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    export_onnx(model, tmp_path / "first.onnx")
    assert all(th.equal(before[name], value) for name, value in model.policy.state_dict().items())
    model.learn(20, reset_num_timesteps=False)
    model.save(tmp_path / "model.zip")
    main([str(tmp_path / "model.zip"), str(tmp_path / "second.onnx")])
    assert "second.onnx: 0.1 MB" in capsys.readouterr().out
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    q_values = run(tmp_path / "second.onnx", {"observation": obs})
    with th.no_grad():
        np.testing.assert_allclose(q_values, model.q_net(th.from_numpy(obs)), rtol=1e-4, atol=1e-5)


def test_a_model_whose_replay_was_on_a_gpu_is_exported(tmp_path):
    on_gpu = {"replay_buffer_class": PrioritizedNStepReplayBuffer, "storage_device": "cuda"}
    RainbowDQN("MlpPolicy", "CartPole-v1", prioritized=False, n_steps=1, **on_gpu).save(tmp_path / "model.zip")
    main([str(tmp_path / "model.zip"), str(tmp_path / "model.onnx")])
    assert run(tmp_path / "model.onnx", {"observation": np.zeros((2, 4), np.float32)}).shape == (2, 2)


def test_a_model_trained_with_hindsight_is_exported(tmp_path):
    model = RainbowDQN("MultiInputPolicy", BitFlippingEnv(n_bits=3), buffer_size=50, replay_buffer_class=HerReplayBuffer)
    model.save(tmp_path / "model.zip")
    main([str(tmp_path / "model.zip"), str(tmp_path / "her.onnx")])
    obs = {key: np.stack([space.sample()]) for key, space in model.observation_space.spaces.items()}
    assert run(tmp_path / "her.onnx", obs).shape == (1, 3)

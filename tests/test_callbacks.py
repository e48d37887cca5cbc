"""Callbacks change what they say, when they say, and a training that goes on does not notice."""

import pytest
import torch as th
from stable_baselines3.common.callbacks import ConvertCallback

from sb3_rainbow import RainbowDQN
from sb3_rainbow.callbacks import FewerSteps
from sb3_rainbow.checkpoint import ResumableCheckpointCallback, load


def model_of(**arguments) -> RainbowDQN:
    small = {"buffer_size": 100, "learning_starts": 8, "train_freq": 1, "seed": 0}
    return RainbowDQN("MlpPolicy", "CartPole-v1", **small | arguments)


def test_returns_have_fewer_steps_late_in_a_training():
    model = model_of()
    seen = []
    count = ConvertCallback(lambda *_: seen.append(model.replay_buffer.n_steps) or True)
    model.learn(10, callback=[FewerSteps(n_steps=1, after=0.5), count])
    assert seen == [3] * 5 + [1] * 5
    assert model.replay_buffer.n_steps == 3, "as the model says: saved and loaded, it fits"


def test_an_argument_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"after=1.5"):
        FewerSteps(n_steps=1, after=1.5)
    with pytest.raises(ValueError, match=r"n_steps=0"):
        FewerSteps(n_steps=0, after=0.5)
    with pytest.raises(ValueError, match=r"n_steps=1: ReplayBuffer makes no n-step returns"):
        model_of(n_steps=1, prioritized=False).learn(10, callback=FewerSteps(n_steps=1, after=0.5))


@pytest.mark.parametrize("stop", [10, 30])
def test_a_resumed_training_has_fewer_steps_from_the_same_point_on(tmp_path, stop):
    def trained(model: RainbowDQN, end: int | None = None) -> RainbowDQN:
        halt = ConvertCallback(lambda *_: model.num_timesteps != end)
        callback = [FewerSteps(n_steps=1, after=0.5), ResumableCheckpointCallback(save_freq=stop, folder=tmp_path), halt]
        return model.learn(40 - model.num_timesteps, callback, reset_num_timesteps=False)

    trained(model_of(), end=stop + 5)
    model = load(tmp_path, env="CartPole-v1")
    assert model.num_timesteps == stop
    resumed, expected = trained(model), trained(model_of())
    for name, parameter in expected.policy.state_dict().items():
        assert th.equal(parameter, resumed.policy.state_dict()[name]), name

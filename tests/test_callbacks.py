"""Callbacks change what they say, when they say, and a training that goes on does not notice."""

import pytest
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback, ConvertCallback

from sb3_rainbow import RainbowDQN
from sb3_rainbow.callbacks import FewerSteps
from sb3_rainbow.checkpoint import ResumableCheckpointCallback, load


def model_of(**arguments) -> RainbowDQN:
    small = {"buffer_size": 100, "learning_starts": 8, "train_freq": 1, "seed": 0}
    return RainbowDQN("MlpPolicy", "CartPole-v1", **small | arguments)


def windows_of(model: RainbowDQN) -> int:
    """Longest window of what is sampled."""
    powers = model.replay_buffer.sample(1000).discounts.unique()
    return len(powers)


def test_returns_have_fewer_steps_late_in_a_training():
    model = model_of(learning_starts=100)
    seen = {}

    def look(*_) -> bool:
        if model.num_timesteps > 4:
            seen[model.num_timesteps] = windows_of(model)
        return True

    model.learn(10, callback=[FewerSteps(n_steps=1, after=0.6), ConvertCallback(look)])
    assert seen == {5: 3, 6: 3, 7: 1, 8: 1, 9: 1, 10: 1}
    assert windows_of(model) == 3


def test_what_is_saved_or_interrupted_late_in_a_training_has_the_models_own_steps(tmp_path):
    model = model_of()
    late = FewerSteps(n_steps=1, after=0.5)
    model.learn(20, callback=[late, CheckpointCallback(15, tmp_path, save_replay_buffer=True)])
    other = model_of()
    other.load_replay_buffer(tmp_path / "rl_model_replay_buffer_15_steps.pkl")
    assert windows_of(other) == 3

    def interrupt(*_) -> bool:
        if model.num_timesteps == 18:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(20, callback=[late, ConvertCallback(interrupt)])
    model.save_replay_buffer(tmp_path / "interrupted")
    other.load_replay_buffer(tmp_path / "interrupted")
    assert windows_of(other) == 3
    model.learn(1)
    assert windows_of(model) == 3


def test_it_hides_no_error_of_a_training_that_did_not_start():
    FewerSteps(n_steps=1, after=0.5).on_training_end()  # as RL Zoo does, whatever happened


def test_an_argument_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"after=1.5"):
        FewerSteps(n_steps=1, after=1.5)
    with pytest.raises(ValueError, match=r"n_steps=0"):
        FewerSteps(n_steps=0, after=0.5)
    with pytest.raises(ValueError, match=r"n_steps=1: needs a PrioritizedNStepReplayBuffer, the model has a ReplayBuffer"):
        model_of(n_steps=1, prioritized=False).learn(10, callback=FewerSteps(n_steps=1, after=0.5))
    with pytest.raises(ValueError, match=r"n_steps=4: must be at most 3"):
        model_of(n_steps=3).learn(10, callback=FewerSteps(n_steps=4, after=0.5))


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

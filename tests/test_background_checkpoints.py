"""Checkpoints are written while training goes on, and hold what was there when they were begun."""

import threading
from unittest.mock import Mock

import pytest
from resumable_training import fingerprint, make_env, make_model
from stable_baselines3.common.callbacks import ConvertCallback

from sb3_rainbow.checkpoint import ResumableCheckpointCallback, callback, load, save
from sb3_rainbow.checkpoint.folder import WRITER, checkpoints


@pytest.mark.parametrize("most", [2**31, 0], ids=["beside the training", "at once"])
def test_training_goes_on_while_a_checkpoint_is_written_unless_it_is_large(tmp_path, monkeypatch, most):
    released, stood_at, write = threading.Event(), [], callback.write_snapshot

    def held_up(*args):
        assert not most or released.wait(60)
        stood_at.append(model.num_timesteps)
        return write(*args)

    monkeypatch.setattr(callback, "MOST_COPIED", most)
    monkeypatch.setattr(callback, "write_snapshot", held_up)
    model = make_model("cartpole", 1)
    release = ConvertCallback(lambda *_: model.num_timesteps < 80 or released.set() or True)
    model.learn(88, callback=[ResumableCheckpointCallback(48, tmp_path), release])
    if most:
        assert stood_at[0] >= 80
    else:
        assert stood_at[0] == 48
    resumed = load(checkpoints(tmp_path)[0], make_env("cartpole", 1))
    assert resumed.num_timesteps == 48
    assert fingerprint(resumed.learn(40, reset_num_timesteps=False)) == fingerprint(model)


def test_without_a_thread_to_spare_training_waits_for_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
    model = make_model("cartpole", 1).learn(60, callback=ResumableCheckpointCallback(48, tmp_path))
    assert load(checkpoints(tmp_path)[0]).num_timesteps == 48
    assert not WRITER.locked()
    save(model, tmp_path)


@pytest.mark.parametrize("most", [2**31, 0], ids=["beside the training", "at once"])
def test_an_error_of_the_writer_ends_the_training_when_the_next_is_due(tmp_path, monkeypatch, most):
    monkeypatch.setattr(callback, "MOST_COPIED", most)
    monkeypatch.setattr(callback, "write_snapshot", Mock(side_effect=OSError("no space")))
    model = make_model("cartpole", 1)
    with pytest.raises(OSError, match="no space"):
        model.learn(200, callback=ResumableCheckpointCallback(48, tmp_path))
    assert model.num_timesteps == (96 if most else 48)
    assert not WRITER.locked()

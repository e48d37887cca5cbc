"""What makes updates fast changes nothing else: bfloat16 within its rounding, compiled networks, the value left out."""

import shutil
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_models import filled
from stable_baselines3.common.logger import configure

from sb3_rainbow import RainbowDQN
from sb3_rainbow.policies import NatureConvolutions


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bfloat16_on_a_processor_without_it_is_warned_of(monkeypatch, has_bfloat16):
    monkeypatch.setattr(th.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bfloat16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RainbowDQN("MlpPolicy", "CartPole-v1", device="cpu")
        assert not caught
        RainbowDQN("MlpPolicy", "CartPole-v1", device="cpu", amp="bf16")
    warned = [(warning.filename, "amp='bf16'" in str(warning.message)) for warning in caught]
    assert warned == ([] if has_bfloat16 else [(__file__, True)])


def test_bfloat16_is_equal_within_its_rounding():
    exact, rounded = filled("CnnPolicy"), filled("CnnPolicy", amp="bf16")
    batch = exact.replay_buffer.sample(32)
    errors = []
    for model in (exact, rounded):
        model.policy.load_state_dict(exact.policy.state_dict())
        th.manual_seed(3)
        errors.append(model.td_errors(batch))
        assert errors[-1].dtype == th.float32
    assert not th.equal(*errors), "nothing was rounded"
    scale = float(exact.q_net(batch.observations).detach().abs().max())
    th.testing.assert_close(errors[1], errors[0], rtol=0, atol=2**-6 * scale)
    errors[1].sum().backward()
    assert all(p.dtype == p.grad.dtype == th.float32 for p in rounded.q_net.parameters())


@pytest.mark.parametrize("head", [{}, {"n_atoms": 51}, {"n_atoms": 20, "v_min": None, "v_max": None}], ids=str)
def test_under_bfloat16_q_values_and_targets_are_float32(head, monkeypatch):
    model = filled("CnnPolicy", amp="bf16", **head)
    seen = []

    def spied(method):
        def spy(*args):
            seen.append((th.is_autocast_enabled("cpu"), args[-1].dtype))
            return method(*args)

        return spy

    for name in ("forward", "targets", "td_errors"):
        monkeypatch.setattr(model.q_net.head, name, spied(getattr(model.q_net.head, name)))
    model.td_errors(model.replay_buffer.sample(8))
    assert seen == [(False, th.float32)] * 3


@pytest.mark.parametrize("noisy", ["factorised", False])
@pytest.mark.parametrize("dueling", [True, False])
def test_under_bfloat16_close_actions_are_still_told_apart(dueling, noisy):
    model = filled("CnnPolicy", amp="bf16", dueling=dueling, noisy=noisy)
    last = (model.q_net.advantage_stream if dueling else model.q_net.q_net)[-1]
    bias = "bias_mu" if noisy else "bias"
    values = th.full_like(getattr(last, bias), 2.0)
    values[1] += 1e-3  # of which bfloat16 knows nothing: after 2 comes 2.016
    last.load_state_dict({bias: values} | {name: 0 * p for name, p in last.named_parameters() if name != bias})
    observations = model.replay_buffer.sample(8).observations
    assert (model._outputs(model.q_net, observations).argmax(dim=1) == 1).all()


@pytest.mark.parametrize("n_atoms", [1, 51])
def test_bfloat16_learns_the_same(n_atoms):
    exact, rounded = (filled("CnnPolicy", n_atoms=n_atoms, amp=amp) for amp in (None, "bf16"))
    rounded.policy.load_state_dict(exact.policy.state_dict())
    losses = []
    for model in (exact, rounded):
        model.set_logger(configure(None, []))
        th.manual_seed(3)
        model.train(100, 32)
        losses.append(model.logger.name_to_value["train/loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


@pytest.mark.parametrize("noisy", ["factorised", False])
def test_the_action_is_that_of_the_greatest_q_value_though_the_value_is_left_out(noisy):
    model = filled("CnnPolicy", noisy=noisy)
    obs = model.replay_buffer.sample(64).observations
    with th.no_grad():
        for deterministic in (True, False):
            q_values, relative = (model.q_net(obs, deterministic, relative) for relative in (False, True))
            assert not th.equal(q_values, relative)
            differences = q_values - relative
            th.testing.assert_close(differences, differences[:, :1].expand_as(differences), rtol=0, atol=1e-5)
    actions, _ = model.predict(obs.numpy(), deterministic=True)
    assert (actions == model.q_net(obs).argmax(1).numpy()).all()


@pytest.mark.parametrize("parts", [{"dueling": False}, {"n_atoms": 5}], ids=str)
def test_where_the_value_cannot_be_left_out_relative_values_are_q_values(parts):
    q_net = filled("MlpPolicy", **parts).q_net
    obs = th.randn(5, 4)
    assert th.equal(q_net(obs, relative=True), q_net(obs))


def test_the_order_of_memory_changes_no_feature():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    convolutions = NatureConvolutions(space)
    images = th.rand(3, 4, 84, 84)
    seen = []
    convolutions.cnn[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    th.testing.assert_close(convolutions(images), convolutions.cnn(images), rtol=1e-4, atol=1e-5)
    assert [x.is_contiguous(memory_format=th.channels_last) for x in seen] == [True, False]
    # Optimisers and checkpoints take parameters and gradients as they lie in memory
    convolutions(images).sum().backward()
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in convolutions.parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_compiled_networks_learn_act_and_are_saved_as_others(tmp_path):
    plain, compiled = filled("MlpPolicy"), filled("MlpPolicy", compile=True)
    assert plain.q_net._compiled_call_impl is None
    assert compiled.q_net._compiled_call_impl is not None
    compiled.policy.load_state_dict(plain.policy.state_dict())
    batch = plain.replay_buffer.sample(32)
    errors = []
    for model in (plain, compiled):
        th.manual_seed(3)
        errors.append(model.td_errors(batch))
    th.testing.assert_close(errors[1], errors[0], rtol=1e-4, atol=1e-5)
    compiled.train(2, 32)
    obs = np.ones((3, 4), np.float32)
    compiled.save(tmp_path / "model")
    loaded = RainbowDQN.load(tmp_path / "model")
    assert loaded.compile
    assert loaded.q_net._compiled_call_impl is not None
    assert (loaded.predict(obs, deterministic=True)[0] == compiled.predict(obs, deterministic=True)[0]).all()
    assert compiled.policy.state_dict().keys() == plain.policy.state_dict().keys()


LEAST = th.finfo(th.float32).smallest_normal


def test_what_adam_knows_of_a_dead_unit_does_not_get_stuck_among_denormal_numbers():
    model = filled("MlpPolicy", noisy=False)
    model.train(1, 8)
    first = next(layer for layer in model.q_net.modules() if isinstance(layer, th.nn.Linear))
    with th.no_grad():
        first.bias[0] = -1e3
    moments = [model.policy.optimizer.state[first.bias][name] for name in ("exp_avg", "exp_avg_sq")]
    for moment in moments:
        moment[0] = LEAST / 8
    model.train(1, 8)
    assert first.bias.grad[0] == 0
    assert [moment[0].item() for moment in moments] == [0, 0]


@pytest.mark.parametrize("before", [False, True])
def test_an_update_leaves_denormal_numbers_to_others_as_they_were(before):
    model = filled("MlpPolicy")
    try:
        th.set_flush_denormal(before)
        model.train(1, 8)
        with pytest.raises(ValueError, match="batch_size"):
            model.train(1, "many")
        assert (th.full((64,), LEAST / 8) * 1 == 0).all() == before
    finally:
        th.set_flush_denormal(False)

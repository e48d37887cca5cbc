"""Noisy layers and networks."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_rainbow import RainbowDQN
from sb3_rainbow.noisy import MATERIALISE_FROM, NoisyLinear
from sb3_rainbow.policies import MlpPolicy

KINDS = ("factorised", "independent")


def effective_weights(layer: NoisyLinear) -> tuple[th.Tensor, th.Tensor]:
    """Weights and biases under the present noise, found by probing the layer as a black box."""
    with th.no_grad():
        bias = layer(th.zeros(1, layer.in_features), deterministic=False)[0]
        weight = (layer(th.eye(layer.in_features), deterministic=False) - bias).T
    return weight, bias


@pytest.mark.parametrize("noise", KINDS)
def test_layers_start_as_in_the_paper(noise):
    layer = NoisyLinear(400, 300, noise, sigma0=0.5)
    bound, sigma = (1 / math.sqrt(400), 0.5 / math.sqrt(400)) if noise == "factorised" else (math.sqrt(3 / 400), 0.5)
    for mu in (layer.weight_mu, layer.bias_mu):
        assert mu.abs().max() <= bound
        assert mu.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)  # uniform
    assert (layer.weight_sigma == sigma).all()
    assert (layer.bias_sigma == sigma).all()


@pytest.mark.parametrize("noise", KINDS)
def test_noise_of_a_layer_is_of_its_kind(noise):
    layer = NoisyLinear(50, 40, noise, sigma0=0.7)
    layer.reset_noise()
    weight, bias = effective_weights(layer)
    weight_noise = ((weight - layer.weight_mu) / layer.weight_sigma).detach()
    bias_noise = ((bias - layer.bias_mu) / layer.bias_sigma).detach()
    rank = th.linalg.matrix_rank(weight_noise, rtol=1e-3).item()
    if noise == "factorised":
        assert rank == 1
        # its factor of the outputs is the noise of the biases (NoisyNet eq. 10 and 11)
        factor = weight_noise / bias_noise[:, None]
        th.testing.assert_close(factor, factor[:1].expand_as(factor), rtol=1e-2, atol=1e-3)
    else:
        assert rank == 40
        assert abs(weight_noise.std().item() - 1) < 0.1


def test_factorised_noise_is_a_signed_root_of_a_normal():
    layer = NoisyLinear(200_000, 1)
    layer.reset_noise()
    normal = layer.weight_noise.sign() * layer.weight_noise**2
    assert abs(normal.mean().item()) < 0.01
    assert abs(normal.std().item() - 1) < 0.01
    assert abs(normal.abs().mean().item() - math.sqrt(2 / math.pi)) < 0.01


@pytest.mark.parametrize("noise", KINDS)
def test_few_and_many_rows_see_the_same_noise(noise):
    layer = NoisyLinear(30, 20, noise)
    layer.reset_noise()
    x = th.randn(MATERIALISE_FROM, 30)
    with th.no_grad():
        many, few = layer(x, deterministic=False), layer(x[:3], deterministic=False)
    th.testing.assert_close(few, many[:3])
    th.testing.assert_close(layer(x, deterministic=False).detach(), many)  # with gradient


@pytest.mark.parametrize("training", [True, False])
def test_deterministic_uses_the_mean_weights_and_draws_nothing_whatever_the_mode(training):
    layer = NoisyLinear(5, 4).train(training)
    layer.reset_noise()
    x, state = th.randn(3, 5), th.get_rng_state()
    th.testing.assert_close(layer(x, deterministic=True), th.nn.functional.linear(x, layer.weight_mu, layer.bias_mu))
    assert (th.get_rng_state() == state).all()
    assert not th.equal(layer(x, deterministic=True), layer(x, deterministic=False))


@pytest.mark.parametrize("noise", KINDS)
def test_gradients_reach_means_and_deviations(noise):
    layer = NoisyLinear(6, 5, noise)
    layer.reset_noise()
    x = th.randn(7, 6)
    layer(x, deterministic=False).pow(2).sum().backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad != 0).all(), name
    output = layer(x, deterministic=False).detach()
    noise_of_weights = th.outer(layer.bias_noise, layer.weight_noise) if noise == "factorised" else layer.weight_noise
    th.testing.assert_close(layer.weight_mu.grad, 2 * output.T @ x)
    th.testing.assert_close(layer.weight_sigma.grad, (2 * output.T @ x) * noise_of_weights)


def test_noise_is_no_part_of_a_state_dict_and_is_not_copied_to_the_target():
    layer = NoisyLinear(5, 4)
    assert sorted(layer.state_dict()) == ["bias_mu", "bias_sigma", "weight_mu", "weight_sigma"]
    model = RainbowDQN("MlpPolicy", "CartPole-v1", target_update_interval=1)
    model.q_net.reset_noise()
    model.q_net_target.reset_noise()
    before = [layer.weight_noise.clone() for layer in model.q_net_target.noisy_layers]
    with th.no_grad():
        for parameter in model.q_net.parameters():
            parameter.add_(1)
    model._logger = type("Silent", (), {"record": lambda *args: None})()
    model._on_step()
    for online, target in zip(model.q_net.parameters(), model.q_net_target.parameters(), strict=True):
        assert th.equal(online, target)
    for layer, noise in zip(model.q_net_target.noisy_layers, before, strict=True):
        assert th.equal(layer.weight_noise, noise)


def test_layers_and_networks_have_independent_noise():
    model = RainbowDQN("MlpPolicy", "CartPole-v1")
    layers = [*model.q_net.noisy_layers, *model.q_net_target.noisy_layers]
    assert len(layers) == 2 * 2 * 3  # networks, streams, layers
    draws: list[list[float]] = []
    for _ in range(2000):
        model.q_net.reset_noise()
        model.q_net_target.reset_noise()
        draws.append([value for layer in layers for value in (layer.weight_noise[0].item(), layer.bias_noise[0].item())])
    correlation = np.corrcoef(np.array(draws).T) - np.eye(2 * len(layers))
    assert np.abs(correlation).max() < 5 / math.sqrt(2000)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_with_noise_really_varies_and_without_does_not(training):
    """SB3 acts in evaluation mode: noise that follows ``training`` would never explore."""
    model = RainbowDQN("MlpPolicy", "CartPole-v1", sigma0=5.0)
    model.policy.set_training_mode(training)
    model.exploration_rate = 0.0
    obs = np.zeros((1, 4), np.float32)
    assert len({model.predict(obs, deterministic=False)[0].item() for _ in range(100)}) == 2
    state = th.get_rng_state(), np.random.get_state()[1].tolist()
    assert len({model.predict(obs, deterministic=True)[0].item() for _ in range(100)}) == 1
    assert (th.get_rng_state() == state[0]).all()
    assert np.random.get_state()[1].tolist() == state[1]


def test_noise_is_drawn_anew_for_every_action(monkeypatch):
    kwargs = {"learning_starts": 0, "train_freq": 100, "exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}
    model = RainbowDQN("MlpPolicy", make_vec_env("CartPole-v1", 3), **kwargs)
    draws = []
    monkeypatch.setattr(model.q_net, "reset_noise", lambda: draws.append(model.num_timesteps))
    model.learn(30)
    # One for each step of the three environments; what comes after step 30 are the three draws of an update
    assert [step for step in draws if step < 30] == list(range(0, 30, 3))


@pytest.mark.parametrize("noisy", KINDS)
def test_the_notebooks_network_has_its_number_of_parameters(noisy):
    policy = RainbowDQN.policy_aliases["CnnPolicy"](
        spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(4), lambda _: 1e-4, noisy=noisy
    )
    assert sum(p.numel() for p in policy.q_net.parameters() if p.requires_grad) == 6_507_690


def test_a_policy_without_noise_has_plain_layers():
    policy = MlpPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 1e-4, noisy=False)
    assert policy.q_net.noisy_layers == []
    obs = th.randn(5, 3)
    assert th.equal(policy.q_net(obs, deterministic=True), policy.q_net(obs, deterministic=False))
    assert policy.q_net.mean_sigma() == 0


def test_mean_sigma_is_the_mean_over_all_weights():
    policy = MlpPolicy(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), lambda _: 1e-4, net_arch=[], sigma0=0.6)
    assert policy.q_net.mean_sigma() == pytest.approx(0.3)  # every one is .6 / sqrt(4)
    with th.no_grad():
        policy.q_net.value_stream[0].weight_sigma.neg_()
    assert policy.q_net.mean_sigma() == pytest.approx(0.3)

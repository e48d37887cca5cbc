"""One update, against an independent derivation from the papers; and what must not be in it."""

import csv
from functools import partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from small_models import OFF
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_rainbow import PrioritizedNStepReplayBuffer, RainbowDQN
from sb3_rainbow.policies import ADAM_EPS
from sb3_rainbow.rainbow import PRIORITY_EPS

PARTS = [{"n_steps": 3}, {"double_q": True}, {"dueling": True}, {"noisy": "factorised"}, {"prioritized": True}]
C51 = {"n_atoms": 51}


def model_with_data(n: int = 60, **kwargs) -> RainbowDQN:
    """A model with transitions stored, ready for ``train``, that has never seen ``learn``."""
    kwargs = {"seed": 0, "learning_rate": 0.01, "buffer_size": 100, "policy_kwargs": {"net_arch": [8, 7]}} | kwargs
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **kwargs)
    model.set_logger(configure(None, []))
    rng = np.random.default_rng(0)
    for _ in range(n):
        obs, next_obs = rng.normal(size=(2, 1, 4)).astype(np.float32)
        done = rng.random(1) < 0.2
        info = {"TimeLimit.truncated": bool(done[0] and rng.random() < 0.5)}
        model.replay_buffer.add(obs, next_obs, rng.integers(0, 2, 1), rng.normal(size=1), done, [info])
    return model


class OfAUser(ReplayBuffer):
    """As users write theirs: other arguments come before the one that SB3 gives by its name."""

    def sample(self, batch_size, beta=0.4, *, env=None):
        assert (batch_size, beta) == (32, 0.4)
        assert env is None
        return super().sample(batch_size, env=env)


def test_a_replay_of_a_users_own_is_asked_as_sb3_asks_it():
    model = RainbowDQN("MlpPolicy", "CartPole-v1", replay_buffer_class=OfAUser, buffer_size=100, learning_starts=50)
    assert model.learn(60)._n_updates > 0


def test_one_number_for_each_transition_is_no_matrix_of_them():
    model = model_with_data(noisy=False, n_steps=3)
    batch = model.replay_buffer.sample(16, beta=0.4)
    flat = batch._replace(weights=batch.weights[:, 0], discounts=batch.discounts[:, 0])
    assert th.equal(model.td_errors(flat), model.td_errors(batch))
    losses = [model._backward(samples)[2][0] for samples in (flat, batch)]
    assert losses[0] == losses[1]
    one_for_all = batch._replace(discounts=th.full_like(batch.discounts, 0.5))
    assert th.equal(model.td_errors(batch._replace(discounts=0.5)), model.td_errors(one_for_all))


def dense(x, prefix, parameters, noise, n_layers):
    """One stream, from the bare parameters and noise vectors."""
    for i in range(n_layers):
        name = f"{prefix}.{2 * i}"
        e_in, e_out = noise[name]
        w = parameters[f"{name}.weight_mu"] + parameters[f"{name}.weight_sigma"] * e_out[:, None] * e_in[None, :]
        b = parameters[f"{name}.bias_mu"] + parameters[f"{name}.bias_sigma"] * e_out
        x = x @ w.T + b
        if i < n_layers - 1:
            x = th.relu(x)
    return x


def outputs_of(obs, parameters, noise, n_atoms):
    """Both streams together: [batch, n_actions, n_atoms]."""
    value = dense(obs, "value_stream", parameters, noise, 3).reshape(len(obs), 1, n_atoms)
    advantage = dense(obs, "advantage_stream", parameters, noise, 3).reshape(len(obs), -1, n_atoms)
    return value + advantage - advantage.sum(1, keepdim=True) / advantage.shape[1]


def errors_of_values(batch, next_outputs, chooser, outputs):
    best = chooser[:, :, 0].argmax(1)
    values = next_outputs[range(16), best, 0]
    targets = batch.rewards[:, 0] + (1 - batch.dones[:, 0]) * batch.discounts[:, 0] * values
    errors = targets - outputs[range(16), batch.actions[:, 0], 0]
    return errors, th.where(errors.abs() < 1, errors**2 / 2, errors.abs() - 0.5)


def errors_of_distributions(batch, next_outputs, chooser, outputs):
    """C51 algorithm 1, atom by atom, with the mean of the chooser's distributions; support -2, -1, ..., 2."""
    support = th.arange(-2.0, 3.0)
    errors = []
    for i in range(16):
        best = (chooser[i].exp() / chooser[i].exp().sum(1, keepdim=True) * support).sum(1).argmax()
        next_probabilities = next_outputs[i, best].exp() / next_outputs[i, best].exp().sum()
        m = th.zeros(5)
        for z, p in zip(support, next_probabilities, strict=True):
            b = float((batch.rewards[i] + (1 - batch.dones[i]) * batch.discounts[i] * z).clamp(-2, 2)) + 2
            low = min(int(b), 3)
            m[low] += p * (low + 1 - b)
            m[low + 1] += p * (b - low)
        p = outputs[i, batch.actions[i, 0]].exp() / outputs[i, batch.actions[i, 0]].exp().sum()
        errors.append(sum(m_j * th.log(m_j / p_j) for m_j, p_j in zip(m, p, strict=True) if m_j > 0))
    return th.stack(errors), th.stack(errors)


def errors_of_quantiles(batch, next_outputs, chooser, outputs):
    """QR-DQN algorithm 1, pair by pair; the quantiles at 0.1, 0.3, ..., 0.9."""
    errors = []
    for i in range(16):
        best = chooser[i].mean(1).argmax()
        targets = batch.rewards[i] + (1 - batch.dones[i]) * batch.discounts[i] * next_outputs[i, best]
        error = 0.0
        for k, theta in enumerate(outputs[i, batch.actions[i, 0]]):
            for y in targets:
                u = y - theta
                share = (2 * k + 1) / 10 if u > 0 else 1 - (2 * k + 1) / 10
                error = error + share * (u**2 / 2 if u.abs() < 1 else u.abs() - 0.5) / 5
        errors.append(error)
    return th.stack(errors), th.stack(errors)


@pytest.mark.parametrize("double_q", [True, False])
@pytest.mark.parametrize(
    ("distribution", "errors_of"),
    [
        ({}, errors_of_values),
        ({"n_atoms": 5, "v_min": -2, "v_max": 2}, errors_of_distributions),
        ({"n_atoms": 5, "v_min": None, "v_max": None}, errors_of_quantiles),
    ],
    ids=["values", "distributions", "quantiles"],
)
def test_an_update_is_the_one_of_the_papers(double_q, distribution, errors_of, monkeypatch):
    n_atoms = distribution.get("n_atoms", 1)
    model = model_with_data(beta0=0.6, max_grad_norm=0.05, double_q=double_q, **distribution)
    model.replay_buffer.update_priorities(np.arange(60), np.random.default_rng(1).uniform(0.1, 3, 60))
    with th.no_grad():
        for parameter in model.q_net_target.parameters():
            parameter.add_(th.randn_like(parameter) * 0.3)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in model.q_net.named_parameters()}
    target_parameters = {name: p.detach().clone() for name, p in model.q_net_target.named_parameters()}
    drawn: list = []  # the noise of each draw, in order
    for q_net in (model.q_net, model.q_net_target):

        def reset(q_net=q_net, draw=q_net.reset_noise):
            draw()
            layers = {name: m for name, m in q_net.named_modules() if hasattr(m, "weight_sigma")}
            drawn.append((q_net, {name: (m.weight_noise.clone(), m.bias_noise.clone()) for name, m in layers.items()}))

        monkeypatch.setattr(q_net, "reset_noise", reset)
    batches = []
    sample = model.replay_buffer.sample
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *a, **k: batches.append(sample(*a, **k)) or batches[-1])

    model.train(gradient_steps=1, batch_size=16)

    (batch,) = batches
    assert len(batch.weights.unique()) > 5, "the test should see the weights"
    assert [q_net is model.q_net for q_net, _ in drawn] == ([True] if double_q else []) + [False, True]
    noise_choice, noise_target, noise_online = ([None] if not double_q else []) + [noise for _, noise in drawn]
    with th.no_grad():
        next_outputs = outputs_of(batch.next_observations, target_parameters, noise_target, n_atoms)
        chooser = outputs_of(batch.next_observations, parameters, noise_choice, n_atoms) if double_q else next_outputs
    outputs = outputs_of(batch.observations, parameters, noise_online, n_atoms)
    errors, losses = errors_of(batch, next_outputs, chooser, outputs)
    loss = (batch.weights[:, 0] * losses).sum() / 16
    gradients = dict(zip(parameters, th.autograd.grad(loss, parameters.values()), strict=True))
    norm = th.stack([g.pow(2).sum() for g in gradients.values()]).sum().sqrt()
    assert norm > 0.05, "the test should see the clipping"
    for name, parameter in model.q_net.named_parameters():
        gradient = gradients[name] * (0.05 / norm)
        # Adam's first step: both moments are those of this gradient alone
        expected = parameters[name] - 0.01 * gradient / (gradient.abs() + ADAM_EPS)
        th.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)
    for name, parameter in model.q_net_target.named_parameters():
        assert th.equal(parameter, target_parameters[name])
        assert parameter.grad is None
    # Priorities: |td error|, the last of a duplicate
    leaves = model.replay_buffer._priorities.leaves
    last = {leaf: error for leaf, error in zip(batch.leaf_indices.tolist(), errors.tolist(), strict=True)}
    for leaf, error in last.items():
        assert leaves[leaf] == pytest.approx((abs(error) + PRIORITY_EPS) ** 0.5, rel=1e-4)
    assert model.beta == 0.6


def reference_train(model: RainbowDQN, gradient_steps: int, batch_size: int) -> None:
    """SB3's ``DQN.train``, with each part written in at the place where it belongs."""
    model.policy.set_training_mode(True)
    for _ in range(gradient_steps):
        kwargs = {"beta": model.beta} if model.prioritized else {}
        data = model.replay_buffer.sample(batch_size, **kwargs)
        discounts = data.discounts if getattr(data, "discounts", None) is not None else model.gamma
        noisy = {} if not model.noisy else {"deterministic": False}
        with th.no_grad():
            if model.double_q:
                if model.noisy:
                    model.q_net.reset_noise()
                actions = model.q_net(data.next_observations, **noisy).argmax(1, keepdim=True)
            if model.noisy:
                model.q_net_target.reset_noise()
            next_q = model.q_net_target(data.next_observations, **noisy)
            next_q = next_q.gather(1, actions) if model.double_q else next_q.max(1)[0].reshape(-1, 1)
            target = data.rewards + (1 - data.dones) * discounts * next_q
        if model.noisy:
            model.q_net.reset_noise()
        current = model.q_net(data.observations, **noisy).gather(1, data.actions.long())
        loss = th.nn.functional.smooth_l1_loss(current, target, reduction="none")
        loss = (loss * data.weights).mean() if model.prioritized else loss.mean()
        model.policy.optimizer.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
        model.policy.optimizer.step()
        if model.prioritized:
            model.replay_buffer.update_priorities(data.leaf_indices, (target - current).detach().abs() + PRIORITY_EPS)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: next(iter(part)))
def test_each_part_alone_equals_its_own_reference(part):
    ours, reference = (model_with_data(**OFF | part) for _ in range(2))
    for model, train in ((ours, RainbowDQN.train), (reference, reference_train)):
        th.manual_seed(1)
        np.random.seed(1)
        for _ in range(20):
            train(model, gradient_steps=2, batch_size=10)
    for p, q in zip(ours.policy.parameters(), reference.policy.parameters(), strict=True):
        assert th.equal(p, q)


def test_each_switch_changes_what_is_learned():
    def parameters(**kwargs):
        optimizer_kwargs = {"eps": 1e-8, "fused": False}  # as without any part
        policy_kwargs = {"net_arch": [8], "optimizer_kwargs": optimizer_kwargs}
        model = model_with_data(**OFF | {"policy_kwargs": policy_kwargs} | kwargs)
        th.manual_seed(1)
        np.random.seed(1)
        with th.no_grad():
            for parameter in model.q_net_target.parameters():
                parameter.add_(th.randn_like(parameter))
        model.train(10, batch_size=10)
        return th.cat([p.flatten() for p in model.q_net.parameters()])

    same_draws = {"replay_buffer_class": PrioritizedNStepReplayBuffer}
    plain = parameters(**same_draws)
    assert th.equal(plain, parameters(**same_draws))
    for part in [*PARTS, C51]:
        changed = parameters(**same_draws | part)
        assert changed.shape != plain.shape or not th.equal(changed, plain), part


def test_double_q_is_the_plain_target_where_both_networks_are_equal():
    models = [model_with_data(noisy=False, double_q=double_q) for double_q in (True, False)]
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    batch = models[0].replay_buffer.sample(32)
    assert th.equal(*(model.td_errors(batch) for model in models))


@pytest.mark.parametrize("n_atoms", [1, 11])
def test_the_target_carries_no_gradient_and_td_errors_change_nothing(n_atoms):
    model = model_with_data(n_atoms=n_atoms)
    batch = model.replay_buffer.sample(8)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    leaves = model.replay_buffer._priorities.leaves.copy()
    errors = model.td_errors(batch)
    assert errors.shape == (8, 1)
    errors.sum().backward()
    assert all(p.grad is None for p in model.q_net_target.parameters())
    assert all(p.grad is not None for p in model.q_net.parameters())
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, before[name])
    assert (model.replay_buffer._priorities.leaves == leaves).all()


class Normalized(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm = nn.BatchNorm1d(self.features_dim)

    def forward(self, observations):
        return self.norm(super().forward(observations))


@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_of_the_observations_that_an_update_learns_from(training):
    model = model_with_data(policy_kwargs={"features_extractor_class": Normalized})
    batch = model.replay_buffer.sample(32)
    model.policy.set_training_mode(training)
    model.td_errors(batch)
    norm = model.q_net.features_extractor.norm
    assert norm.num_batches_tracked == training
    th.testing.assert_close(norm.running_mean, training * norm.momentum * batch.observations.mean(0))
    assert model.q_net_target.features_extractor.norm.num_batches_tracked == 0


@pytest.mark.parametrize("n_atoms", [1, 11])
def test_td_errors_take_the_samples_of_any_buffer(n_atoms):
    model = model_with_data(noisy=False, n_atoms=n_atoms)
    data = model.replay_buffer.sample(8)
    ours = model.td_errors(data)
    plain = ReplayBufferSamples(*data[:5], discounts=data.discounts)
    assert th.equal(model.td_errors(plain), ours)
    without = plain._replace(discounts=None)
    ones = data._replace(discounts=th.full_like(data.discounts, model.gamma))
    assert th.equal(model.td_errors(without), model.td_errors(ones))


@pytest.mark.parametrize("buffer_class", [ReplayBuffer, NStepReplayBuffer])
def test_a_buffer_without_priorities_trains_with_weights_of_one(buffer_class):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", replay_buffer_class=buffer_class, learning_starts=10, seed=0)
    assert type(model.replay_buffer) is buffer_class
    model.learn(60)
    assert model.n_steps == 3
    assert model.logger.name_to_value["train/weight_mean"] == 1


def test_hindsight_replay_works_with_default_arguments():
    env = BitFlippingEnv(n_bits=4)
    model = RainbowDQN(
        "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=20, seed=0, buffer_size=1000
    )
    model.learn(100)
    assert type(model.replay_buffer) is HerReplayBuffer
    assert model.logger.name_to_value["train/weight_mean"] == 1


def test_a_dict_space_works_with_the_default_arguments():
    env = BitFlippingEnv(n_bits=4)
    model = RainbowDQN("MultiInputPolicy", env, learning_starts=20, seed=0, buffer_size=1000)
    assert isinstance(model.replay_buffer, PrioritizedNStepReplayBuffer)
    assert model.replay_buffer.n_steps == 3
    model.learn(100)
    assert model._n_updates > 0
    off = RainbowDQN("MultiInputPolicy", env, learning_starts=20, seed=0, buffer_size=1000, **OFF)
    assert type(off.replay_buffer) is DictReplayBuffer
    off.learn(100)
    assert off._n_updates > 0


def test_our_buffer_class_given_by_name_takes_the_models_settings():
    model = RainbowDQN(
        "MlpPolicy",
        "CartPole-v1",
        replay_buffer_class=PrioritizedNStepReplayBuffer,
        replay_buffer_kwargs={"alpha": 0.9},
        n_steps=5,
        gamma=0.9,
    )
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma, model.replay_buffer.alpha) == (5, 0.9, 0.9)


def test_n_steps_without_priorities_draws_uniformly():
    model = RainbowDQN("MlpPolicy", "CartPole-v1", prioritized=False, learning_starts=10)
    model.learn(100)
    assert model.replay_buffer.alpha == 0
    leaves = model.replay_buffer._priorities.leaves
    assert set(np.unique(leaves)) <= {0.0, 1.0}
    assert model.logger.name_to_value["train/weight_mean"] == 1


def test_training_needs_no_environment_and_little_data():
    model = model_with_data(n=2, n_steps=10)
    model.env = None
    model.train(gradient_steps=3, batch_size=50)
    assert model._n_updates == 3


def test_adams_epsilon_is_the_papers_unless_every_part_is_off_or_it_is_given():
    def option(name, **kwargs):
        return RainbowDQN("MlpPolicy", "CartPole-v1", **kwargs).policy.optimizer.defaults.get(name)

    eps, fused = partial(option, "eps"), partial(option, "fused")

    assert eps() == 1.5e-4
    assert eps(**OFF) == DQN("MlpPolicy", "CartPole-v1").policy.optimizer.defaults["eps"] == 1e-8
    assert eps(**OFF | {"double_q": True}) == 1.5e-4
    assert eps(policy_kwargs={"optimizer_kwargs": {"eps": 1e-3}}) == 1e-3
    assert eps(policy_kwargs={"optimizer_class": th.optim.SGD}) is None
    assert eps(**OFF | C51) == 1.5e-4
    assert fused()
    assert fused(policy_kwargs={"optimizer_kwargs": {"eps": 1e-3}}), "what is not given is ours"
    assert eps(policy_kwargs={"optimizer_kwargs": {"foreach": True}}) == 1.5e-4
    assert not fused(**OFF)


def test_a_users_policy_kwargs_are_not_changed():
    policy_kwargs, buffer_kwargs = {"net_arch": [5]}, {"weight_norm": "memory"}
    model = RainbowDQN("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, replay_buffer_kwargs=buffer_kwargs)
    assert policy_kwargs == {"net_arch": [5]} == model.policy_kwargs
    assert buffer_kwargs == {"weight_norm": "memory"} == model.replay_buffer_kwargs


def test_one_coin_for_every_environment(monkeypatch):
    model = RainbowDQN("MlpPolicy", make_vec_env("CartPole-v1", 8), seed=0, noisy=False)
    greedy = model.predict(np.zeros((8, 4), np.float32), deterministic=True)[0][0]
    monkeypatch.setattr(model.action_space, "sample", lambda: 7)
    model.exploration_rate = 0.5
    shares = [(model.predict(np.zeros((8, 4), np.float32))[0] == 7).mean() for _ in range(400)]
    assert 0.45 < np.mean(shares) < 0.55
    assert len(set(shares)) > 5, "all environments explore together"
    model.exploration_rate = 0.0
    assert (model.predict(np.zeros((8, 4), np.float32))[0] == greedy).all()


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_single_observation_gets_a_single_action(deterministic):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", seed=0)
    for rate in (0.0, 1.0):
        model.exploration_rate = rate
        action, _ = model.predict(np.zeros(4, np.float32), deterministic=deterministic)
        assert action.shape == ()
        assert spaces.Discrete(2).contains(action[()])
        action, _ = model.predict(np.zeros((1, 4), np.float32), deterministic=deterministic)
        assert action.shape == (1,)


def test_beta_grows_from_beta0_to_one():
    model = RainbowDQN("MlpPolicy", "CartPole-v1", beta0=0.4)
    betas = []
    for progress in (1.0, 0.75, 0.5, 0.0, -0.1):
        model._current_progress_remaining = progress
        betas.append(model.beta)
    assert betas == pytest.approx([0.4, 0.55, 0.7, 1.0, 1.0])


def test_priorities_noise_and_weights_are_logged_beside_what_sb3_logs(tmp_path):
    logs = []
    for cls in (RainbowDQN, DQN):
        model = cls("MlpPolicy", "CartPole-v1", learning_starts=50, seed=0)
        model.set_logger(configure(str(tmp_path / cls.__name__), ["csv"]))
        model.learn(400, log_interval=1)
        model.logger.close()
        with (tmp_path / cls.__name__ / "progress.csv").open() as file:
            logs.append(list(csv.DictReader(file)))
    ours, theirs = (set(lines[0]) for lines in logs)
    added = {"train/beta", "train/noise_sigma", "train/weight_mean", "train/priority_max", "replay/size_gib"}
    assert ours == theirs | added
    last = {name: float(value) for name, value in logs[0][-1].items() if value}
    assert 0.4 < last["train/beta"] < 1
    assert 0 < last["train/weight_mean"] < 1
    assert last["train/priority_max"] > 1
    assert last["train/noise_sigma"] > 0

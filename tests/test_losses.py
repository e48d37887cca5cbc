"""The equations, against hand numbers; poison stands wherever nothing may be read."""

import math

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.utils import quantile_huber_loss
from torch.nn import functional as F

from sb3_rainbow import losses


def test_the_outputs_of_the_actions_are_taken_and_no_others():
    outputs = th.full((2, 3, 2), 99.0)  # must not be taken
    outputs[0, 1], outputs[1, 2] = th.tensor([4.0, -4.0]), th.tensor([5.0, -5.0])
    assert losses.of_actions(outputs, th.tensor([1, 2])).tolist() == [[4.0, -4.0], [5.0, -5.0]]


def test_a_termination_does_not_bootstrap_and_every_sample_has_its_discount():
    rewards, dones = th.tensor([[1.0], [1.0], [2.0]]), th.tensor([[0.0], [1.0], [0.0]])
    discounts, values = th.tensor([[0.9], [0.5], [0.81]]), th.tensor([[10.0], [99.0], [100.0]])
    th.testing.assert_close(losses.td_target(rewards, dones, discounts, values), th.tensor([[10.0], [1.0], [83.0]]))
    th.testing.assert_close(losses.td_target(rewards, dones, 0.5, values), th.tensor([[6.0], [1.0], [52.0]]))
    atoms = th.tensor([-1.0, 0.0, 1.0])
    expected = th.tensor([[0.1, 1.0, 1.9], [1.0, 1.0, 1.0], [1.19, 2.0, 2.81]])
    th.testing.assert_close(losses.td_target(rewards, dones, discounts, atoms), expected)


def test_a_return_between_two_atoms_is_shared_by_nearness_and_one_outside_goes_to_the_end():
    support = th.tensor([-1.0, 0.0, 1.0])
    returns = th.tensor([[-0.25, 0.5, 1.0], [-7.0, 0.0, 9.0], [0.25, 0.25, 0.25]])
    probabilities = th.tensor([[0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    expected = th.tensor([[0.1, 0.5, 0.4], [0.1, 0.2, 0.7], [0.0, 0.75, 0.25]])
    th.testing.assert_close(losses.categorical_projection(returns, probabilities, support), expected)


def slow_projection(returns, probabilities, v_min, v_max, n_atoms):
    """C51 algorithm 1, atom by atom."""
    m = [0.0] * n_atoms
    spacing = (v_max - v_min) / (n_atoms - 1)
    for z, p in zip(returns, probabilities, strict=True):
        b = (min(max(z, v_min), v_max) - v_min) / spacing
        low = min(math.floor(b), n_atoms - 2)
        m[low] += p * (low + 1 - b)
        m[low + 1] += p * (b - low)
    return m


@given(
    st.integers(2, 60),
    st.floats(-50, 50),
    st.floats(0.1, 100),
    st.floats(0, 1),
    st.lists(st.floats(-120, 120), min_size=1, max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_the_projection_is_the_slow_one_and_keeps_the_mass_and_the_mean_inside(n_atoms, v_min, width, discount, rewards):
    support = th.linspace(v_min, v_min + width, n_atoms, dtype=th.float64)
    returns = th.tensor(rewards, dtype=th.float64)[:, None] + discount * support
    generator = th.Generator().manual_seed(n_atoms)
    probabilities = th.rand(returns.shape, generator=generator, dtype=th.float64).softmax(1)
    projected = losses.categorical_projection(returns, probabilities, support)
    for row, z, p in zip(projected.tolist(), returns.tolist(), probabilities.tolist(), strict=True):
        assert row == pytest.approx(slow_projection(z, p, v_min, v_min + width, n_atoms), abs=1e-9)
    th.testing.assert_close(projected.sum(1), th.ones(len(rewards), dtype=th.float64))
    means = (probabilities * returns.clamp(support[0], support[-1])).sum(1)
    th.testing.assert_close(projected @ support, means, rtol=1e-6, atol=1e-6)


def test_the_divergence_is_zero_where_nothing_is_left_to_learn_and_its_gradient_is_the_cross_entropys():
    targets = th.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    logits = th.tensor([[0.0, 0.0, -200.0], [0.0, 0.0, 0.0]], requires_grad=True)
    divergence = losses.kl_divergence(targets, logits.log_softmax(1))
    expected = 0.5 * math.log(0.25 * 3) + 0.5 * math.log(0.5 * 3)
    th.testing.assert_close(divergence, th.tensor([[0.0], [expected]]))
    (gradient,) = th.autograd.grad(divergence.sum(), logits)
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
    th.testing.assert_close(gradient, th.autograd.grad(cross_entropy, logits)[0])


def test_huber_is_a_square_near_zero_and_a_line_beyond_one():
    errors = th.tensor([[0.0], [0.5], [-0.5], [1.0], [3.0], [-3.0]])
    th.testing.assert_close(losses.huber(errors), th.tensor([[0.0], [0.125], [0.125], [0.5], [2.5], [2.5]]))
    errors = th.linspace(-4, 4, 81, requires_grad=True)
    (gradient,) = th.autograd.grad(losses.huber(errors).sum(), errors)
    th.testing.assert_close(gradient, errors.detach().clamp(-1, 1))


@pytest.mark.parametrize("n_atoms", [1, 2, 50])
def test_quantile_losses_are_those_of_qr_dqn(n_atoms):
    generator = th.Generator().manual_seed(n_atoms)
    targets, quantiles = th.randn(2, 16, n_atoms, generator=generator) * 3
    ours = losses.quantile_huber(targets, quantiles)
    assert ours.shape == (16, 1)
    th.testing.assert_close(ours.mean(), quantile_huber_loss(quantiles, targets))


def test_the_loss_of_a_quantile_is_least_where_it_splits_the_targets():
    targets = th.tensor([[0.0, 10.0, 20.0, 30.0]])
    quantiles = th.full((1, 2), -50.0, requires_grad=True)  # at 1/4 and 3/4
    optimizer = th.optim.SGD([quantiles], lr=0.5)
    for _ in range(2000):
        optimizer.zero_grad()
        losses.quantile_huber(targets, quantiles).sum().backward()
        optimizer.step()
    low, high = quantiles[0].tolist()
    assert -1 <= low <= 11
    assert 19 <= high <= 31


def test_weights_multiply_each_loss_before_the_mean():
    values = th.tensor([[1.0], [2.0], [6.0]])
    assert losses.weighted_mean(values, th.tensor([[1.0], [0.5], [0.0]])).item() == pytest.approx(2 / 3)
    assert losses.weighted_mean(values, 1.0).item() == 3.0


def test_the_loss_of_equal_weights_is_sb3s():
    q_values, targets = th.randn(100, 1, requires_grad=True), th.randn(100, 1) * 3
    ours = losses.weighted_mean(losses.huber(targets - q_values), 1.0)
    theirs = F.smooth_l1_loss(q_values, targets)
    assert ours.item() == theirs.item()
    assert th.equal(th.autograd.grad(ours, q_values)[0], th.autograd.grad(theirs, q_values)[0])

"""The equations, against hand numbers; poison stands wherever nothing may be read."""

import pytest
import torch as th
from torch.nn import functional as F

from sb3_rainbow import losses


def test_without_double_q_the_largest_value_counts():
    q_values = th.tensor([[1.0, 3.0, 2.0], [-1.0, -3.0, -2.0]])
    assert losses.next_state_values(q_values).tolist() == [[3.0], [-1.0]]


def test_double_q_takes_the_value_of_the_action_that_the_other_network_chooses():
    values = th.tensor([[99.0, 4.0, 98.0], [91.0, 99.0, 5.0]])  # 99, 98, 91: must not be chosen
    choosing = th.tensor([[0.0, 2.0, 1.0], [-7.0, -6.0, -5.0]])
    assert losses.next_state_values(values, choosing).tolist() == [[4.0], [5.0]]


def test_double_q_equals_single_q_when_the_networks_agree():
    values = th.randn(64, 5)
    assert th.equal(losses.next_state_values(values, values), losses.next_state_values(values))


def test_a_termination_does_not_bootstrap_and_every_sample_has_its_discount():
    rewards, dones = th.tensor([[1.0], [1.0], [2.0]]), th.tensor([[0.0], [1.0], [0.0]])
    discounts, values = th.tensor([[0.9], [0.5], [0.81]]), th.tensor([[10.0], [99.0], [100.0]])
    th.testing.assert_close(losses.td_target(rewards, dones, discounts, values), th.tensor([[10.0], [1.0], [83.0]]))
    th.testing.assert_close(losses.td_target(rewards, dones, 0.5, values), th.tensor([[6.0], [1.0], [52.0]]))


def test_huber_is_a_square_near_zero_and_a_line_beyond_one():
    errors = th.tensor([[0.0], [0.5], [-0.5], [1.0], [3.0], [-3.0]])
    th.testing.assert_close(losses.huber(errors), th.tensor([[0.0], [0.125], [0.125], [0.5], [2.5], [2.5]]))
    errors = th.linspace(-4, 4, 81, requires_grad=True)
    (gradient,) = th.autograd.grad(losses.huber(errors).sum(), errors)
    th.testing.assert_close(gradient, errors.detach().clamp(-1, 1))


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

"""The equations of the update, each one once: pure functions on tensors, without gradient tricks."""

import torch as th
from torch.nn import functional as F


def next_state_values(next_q_values: th.Tensor, choosing_q_values: th.Tensor | None = None) -> th.Tensor:
    r"""
    Value of the next states: :math:`\max_a q(s', a)` (DQN), or :math:`q(s', \mathrm{argmax}_a \, q_\theta(s', a))`
    (van Hasselt et al. 2016, "Deep Reinforcement Learning with Double Q-learning", eq. 4).

    :param next_q_values: ``[batch, n_actions]``: the target network at the next observations
    :param choosing_q_values: ``[batch, n_actions]``: the online network there, which chooses; None for the maximum
    :return: ``[batch, 1]``
    """
    if choosing_q_values is None:
        return next_q_values.amax(dim=1, keepdim=True)
    return next_q_values.gather(1, choosing_q_values.argmax(dim=1, keepdim=True))


def td_target(rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_values: th.Tensor) -> th.Tensor:
    r"""
    :math:`R_t^{(k)} + \gamma^k v(s_{t+k})`, without the second term after a termination
    (Rainbow, section "Multi-step learning").

    :param rewards: ``[batch, 1]``: n-step returns
    :param dones: ``[batch, 1]``: 1 after a termination, else 0
    :param discounts: ``[batch, 1]``: ``gamma ** k``, or one number for all
    :param next_values: ``[batch, 1]``: values of the states where the windows end
    :return: ``[batch, 1]``
    """
    return rewards + (1 - dones) * discounts * next_values


def huber(td_errors: th.Tensor) -> th.Tensor:
    r"""
    :math:`\delta^2 / 2` where :math:`|\delta| < 1`, else :math:`|\delta| - 1/2` (Mnih et al. 2015: the error is clipped).

    :param td_errors: any shape
    :return: the same shape
    """
    return F.smooth_l1_loss(td_errors, th.zeros_like(td_errors), reduction="none")


def weighted_mean(losses: th.Tensor, weights: th.Tensor | float) -> th.Tensor:
    r"""
    :math:`\frac{1}{B} \sum_i w_i \ell_i` (PER algorithm 1, line 13).

    :param losses: ``[batch, 1]``
    :param weights: ``[batch, 1]`` importance weights, or one for all
    :return: scalar
    """
    return (weights * losses).mean()

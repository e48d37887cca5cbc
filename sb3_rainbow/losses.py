"""The equations of the update, each one once: pure functions. Tensors are float32 if not said otherwise."""

import torch as th
from torch.nn import functional as F


def of_actions(outputs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    What the network says of one action in each state. With double Q-learning, ``actions`` are those that the online network
    prefers, and ``outputs`` the target network's (van Hasselt et al. 2016, "Deep Reinforcement Learning with Double
    Q-learning", section "Double DQN").

    :param outputs: ``[batch, n_actions, n_atoms]``
    :param actions: ``[batch]`` int64
    :return: ``[batch, n_atoms]``
    """
    return outputs[th.arange(len(actions), device=actions.device), actions]


def td_target(rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_values: th.Tensor) -> th.Tensor:
    r"""
    :math:`R_t^{(k)} + \gamma^k v(s_{t+k})`, without the second term after a termination
    (Rainbow, section "Multi-step learning"). For the atoms of a distribution: :math:`R_t^{(k)} + \gamma^k z_i`.

    :param rewards: ``[batch, 1]``: n-step returns
    :param dones: ``[batch, 1]``: 1 after a termination, else 0
    :param discounts: ``[batch, 1]``: ``gamma ** k``, or one number for all
    :param next_values: ``[batch, 1]``: values of the states where the windows end; or ``[n_atoms]``: atoms;
        or ``[batch, n_atoms]``: quantiles
    :return: ``[batch, 1]``; or ``[batch, n_atoms]``
    """
    return rewards + (1 - dones) * discounts * next_values


def huber(td_errors: th.Tensor) -> th.Tensor:
    r"""
    :math:`\delta^2 / 2` where :math:`|\delta| < 1`, else :math:`|\delta| - 1/2` (Mnih et al. 2015: the error is clipped).

    :param td_errors: any shape
    :return: the same shape
    """
    return F.smooth_l1_loss(td_errors, th.zeros_like(td_errors), reduction="none")


def categorical_projection(returns: th.Tensor, probabilities: th.Tensor, support: th.Tensor) -> th.Tensor:
    r"""
    The distribution on the support that is nearest to one on other returns: every return's probability goes to its two
    neighbours, the more the nearer they are; what is outside the support goes to its end (C51 eq. 7):

    .. math:: m_i = \sum_j \left[ 1 - \frac{|[\hat T z_j]_{v_{min}}^{v_{max}} - z_i|}{\Delta z} \right]_0^1 p_j

    :param returns: ``[batch, n_atoms]``: the returns :math:`\hat T z_j`
    :param probabilities: ``[batch, n_atoms]``: theirs, :math:`p_j`
    :param support: ``[n_atoms]``: evenly spaced :math:`z_i`, ascending
    :return: ``[batch, n_atoms]``: probabilities
    """
    spacing = (support[-1] - support[0]) / (len(support) - 1)
    # In units of the spacing: the support is 0, 1, ..., n_atoms - 1
    positions = ((returns - support[0]) / spacing).clamp(0, len(support) - 1)
    atoms = th.arange(len(support), device=support.device, dtype=support.dtype)
    shares = (1 - (positions[:, None, :] - atoms[:, None]).abs()).clamp(min=0)
    return (shares @ probabilities[:, :, None]).squeeze(2)


def kl_divergence(targets: th.Tensor, log_probabilities: th.Tensor) -> th.Tensor:
    r"""
    :math:`\sum_i m_i \log (m_i / p_i)` (Rainbow, section "Distributional RL"): the cross-entropy that C51 minimises, less the
    targets' own entropy, so that it is 0 where nothing is left to learn.

    :param targets: ``[batch, n_atoms]``: probabilities :math:`m_i`, may be 0
    :param log_probabilities: ``[batch, n_atoms]``: :math:`\log p_i`
    :return: ``[batch, 1]``
    """
    return F.kl_div(log_probabilities, targets, reduction="none").sum(dim=1, keepdim=True)


def quantile_huber(targets: th.Tensor, quantiles: th.Tensor) -> th.Tensor:
    r"""
    Errors of the quantiles at :math:`\hat\tau_i = (i - 1/2) / N` (Dabney et al. 2018, "Distributional Reinforcement Learning
    with Quantile Regression", algorithm 1), with the Huber loss :math:`L` of ``huber``:

    .. math:: \sum_i \frac{1}{N} \sum_j |\hat\tau_i - 1_{u_{ij} < 0}| \, L(u_{ij}), \quad u_{ij} = y_j - \theta_i

    :param targets: ``[batch, n_atoms]``: :math:`y_j`
    :param quantiles: ``[batch, n_atoms]``: :math:`\theta_i`
    :return: ``[batch, 1]``
    """
    n_atoms = quantiles.shape[1]
    taus = (th.arange(n_atoms, device=quantiles.device) + 0.5) / n_atoms
    errors = targets[:, None, :] - quantiles[:, :, None]
    shares = (taus[:, None] - (errors < 0).float()).abs()
    return (shares * huber(errors)).mean(dim=2).sum(dim=1, keepdim=True)


def weighted_mean(losses: th.Tensor, weights: th.Tensor | float) -> th.Tensor:
    r"""
    :math:`\frac{1}{B} \sum_i w_i \ell_i` (PER algorithm 1, line 13).

    :param losses: ``[batch, 1]``
    :param weights: ``[batch, 1]`` importance weights, or one for all
    :return: scalar
    """
    return (weights * losses).mean()

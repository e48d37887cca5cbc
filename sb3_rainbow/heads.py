"""
What the Q-network says of each action's return: its expected value, or its distribution, as probabilities of given returns
(Bellemare et al. 2017, "A Distributional Perspective on Reinforcement Learning", C51 below) or as quantiles. Everything that
differs between them is here. Tensors are float32.
"""

import torch as th
from torch import nn

from sb3_rainbow import losses


class ExpectedValue(nn.Module):
    """One number for each action: its Q-value."""

    n_atoms = 1
    #: Whether adding the same to all actions keeps their order
    shift_keeps_order = True

    def forward(self, outputs: th.Tensor) -> th.Tensor:
        """
        Q-values.

        :param outputs: ``[batch, n_actions, n_atoms]``: of the network
        :return: ``[batch, n_actions]``
        """
        return outputs.squeeze(2)

    def targets(
        self, rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_outputs: th.Tensor
    ) -> th.Tensor:
        """
        What the network should say of the actions taken.

        :param rewards: ``[batch, 1]``: n-step returns
        :param dones: ``[batch, 1]``: 1 after a termination, else 0
        :param discounts: ``[batch, 1]``: ``gamma ** k``, or one number for all
        :param next_outputs: ``[batch, n_atoms]``: of the target network, for the actions chosen where the windows end
        :return: ``[batch, n_atoms]``
        """
        return losses.td_target(rewards, dones, discounts, next_outputs)

    def td_errors(self, targets: th.Tensor, outputs: th.Tensor) -> th.Tensor:
        """
        How far the network is from the targets. The magnitude is the priority.

        :param targets: ``[batch, n_atoms]``
        :param outputs: ``[batch, n_atoms]``: of the online network, for the actions taken
        :return: ``[batch, 1]``
        """
        return targets - outputs

    def loss(self, td_errors: th.Tensor) -> th.Tensor:
        """
        :param td_errors: ``[batch, 1]``
        :return: ``[batch, 1]``: what is minimised, for each sample
        """
        return losses.huber(td_errors)


class Categorical(ExpectedValue):
    r"""
    A probability for each of ``n_atoms`` returns :math:`z_i`, evenly spaced from ``v_min`` to ``v_max`` (the *support*). The
    network gives logits, :math:`p_i(s, a) = \mathrm{softmax}_i`, and :math:`q(s, a) = \sum_i z_i \, p_i(s, a)`. The errors are
    KL divergences, which are minimised and are the priorities (Rainbow, section "The Integrated Agent"); the targets are
    probabilities, ``[batch, n_atoms]``.

    :param n_atoms: number of atoms, at least 2
    :param v_min: smallest return; whatever is below counts as it
    :param v_max: largest return
    """

    shift_keeps_order = False
    support: th.Tensor

    def __init__(self, n_atoms: int, v_min: float, v_max: float) -> None:
        super().__init__()
        self.n_atoms = n_atoms
        # Follows from the arguments: no part of what is saved
        self.register_buffer("support", th.linspace(v_min, v_max, n_atoms), persistent=False)

    def forward(self, outputs: th.Tensor) -> th.Tensor:
        return outputs.softmax(dim=2) @ self.support

    def targets(
        self, rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_outputs: th.Tensor
    ) -> th.Tensor:
        returns = losses.td_target(rewards, dones, discounts, self.support)
        return losses.categorical_projection(returns, next_outputs.softmax(dim=1), self.support)

    def td_errors(self, targets: th.Tensor, outputs: th.Tensor) -> th.Tensor:
        return losses.kl_divergence(targets, outputs.log_softmax(dim=1))

    def loss(self, td_errors: th.Tensor) -> th.Tensor:
        return td_errors

    def extra_repr(self) -> str:
        """:return: what ``print`` shows"""
        return f"n_atoms={self.n_atoms}, v_min={self.support[0]:g}, v_max={self.support[-1]:g}"


class Quantiles(ExpectedValue):
    r"""
    Quantiles of the return: the positions of ``n_atoms`` equally probable returns (Dabney et al. 2018, "Distributional
    Reinforcement Learning with Quantile Regression"), so that nobody needs to know which returns are possible. The Q-value is
    their mean. The errors are quantile Huber losses, which are minimised.

    Departure: they are the priorities too; the paper's agent samples uniformly.

    :param n_atoms: number of quantiles
    """

    def __init__(self, n_atoms: int) -> None:
        super().__init__()
        self.n_atoms = n_atoms

    def forward(self, outputs: th.Tensor) -> th.Tensor:
        return outputs.mean(dim=2)

    def td_errors(self, targets: th.Tensor, outputs: th.Tensor) -> th.Tensor:
        return losses.quantile_huber(targets, outputs)

    def loss(self, td_errors: th.Tensor) -> th.Tensor:
        return td_errors

    def extra_repr(self) -> str:
        """:return: what ``print`` shows"""
        return f"n_atoms={self.n_atoms}"


def make_head(n_atoms: int, v_min: float | None, v_max: float | None) -> ExpectedValue:
    """
    :param n_atoms: 1 for expected values
    :param v_min: smallest return of the distributions; None for quantiles
    :param v_max: largest return of the distributions; None for quantiles
    :return: the head that these arguments of ``RainbowDQN`` ask for
    """
    if n_atoms == 1:
        return ExpectedValue()
    return Quantiles(n_atoms) if v_min is None or v_max is None else Categorical(n_atoms, v_min, v_max)

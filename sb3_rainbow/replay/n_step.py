"""n-step returns, made when sampling from stored 1-step rewards (Sutton 1988; Hessel et al. 2017, "Multi-step learning")."""

from collections.abc import Callable
from typing import NamedTuple

from sb3_rainbow.replay.arrays import Array, namespace, take


class NStepReturns(NamedTuple):
    """What ``n_step_returns`` gives for each leaf."""

    #: ``[batch]`` float32: sum of discounted rewards
    returns: Array
    #: ``[batch]`` float32: ``gamma ** k`` for the ``k`` steps really summed
    discounts: Array
    #: ``[batch]`` int64: the leaf whose next observation bootstraps
    last_leaves: Array
    #: ``[batch]`` float32: 1 where the window ends in a termination, which does not bootstrap
    dones: Array


class Windows(NamedTuple):
    """What windows of one length have in common: for the j-th step of each, ``[n_steps]``."""

    #: uint8: 1 unless it is the last
    not_last: Array
    #: int64: from the first leaf to its leaf
    distances: Array
    #: float32: ``gamma ** j``
    powers: Array
    #: float32: ``gamma ** (j + 1)``
    next_powers: Array


def make_windows(n_steps: int, gamma: float, n_envs: int, like: Array) -> Windows:
    """
    :param n_steps: longest window
    :param gamma: discount of one step
    :param n_envs: number of environments
    :param like: an array on the device where they are needed
    :return: what ``n_step_returns`` takes
    """
    xp = namespace(like)
    steps = xp.arange(n_steps, device=like.device)
    powers = xp.asarray([gamma**j for j in range(n_steps + 1)], dtype=xp.float32, device=like.device)
    return Windows(xp.asarray(steps < n_steps - 1, dtype=xp.uint8), steps * n_envs, powers[:-1], powers[1:])


def n_step_returns(
    rewards: Array,
    goes_on: Array,
    terminated: Array,
    leaf_indices: Array,
    windows: Windows,
    normalize_reward: Callable[[Array], Array] | None = None,
) -> NStepReturns:
    r"""
    :math:`R_t^{(k)} = \sum_{j=0}^{k-1} \gamma^j r_{t+j}`, with the discount :math:`\gamma^k` of what follows
    (Rainbow, section "Multi-step learning"). ``k`` is ``n_steps``, or less where the window meets an episode's end or
    the newest transition: it goes beyond neither. Leaf ``slot * n_envs + env`` holds one transition; the window of a leaf
    goes on in the same environment's next slots, around the ring.

    :param rewards: ``[slots * n_envs]`` float32: raw 1-step rewards
    :param goes_on: ``[slots * n_envs]`` uint8: 0 where an episode ended and for each environment's newest transition, else 1
    :param terminated: ``[slots * n_envs]`` float32: 1 where an episode ended by a termination, else 0
    :param leaf_indices: ``[batch]`` int64: where the windows start
    :param windows: their length, the discount and the number of environments, see ``make_windows``
    :param normalize_reward: applied to the ``[batch, n_steps]`` single rewards before they are summed
    :return: returns, discounts, last leaves and dones
    """
    xp = namespace(rewards)
    window = (leaf_indices[:, None] + windows.distances) % len(rewards)  # [batch, n_steps]
    # The first step that does not go on, or the last one
    last = (take(goes_on, window) * windows.not_last).argmin(1)
    each = xp.arange(len(last), device=rewards.device)
    last_leaves = window[each, last]
    window_rewards = take(rewards, window)
    if normalize_reward is not None:
        window_rewards = normalize_reward(window_rewards)
    # Of the partial sums one is taken: what lies beyond the window cannot leak in, not even as nan
    returns = (window_rewards * windows.powers).cumsum(1)[each, last]
    return NStepReturns(returns, take(windows.next_powers, last), last_leaves, take(terminated, last_leaves))

"""Types that rooms exchange."""

from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, PyTorchObs, ReplayBufferSamples


class PrioritizedReplayBufferSamples(NamedTuple):
    """SB3's ``ReplayBufferSamples``, with importance weights and where each transition lies."""

    #: ``[batch, *obs_shape]``, or a dict of those, with the space's dtype
    observations: PyTorchObs
    #: ``[batch, action_dim]``, with the space's dtype (float64 as float32): int64 for discrete actions
    actions: th.Tensor
    #: ``[batch, *obs_shape]``, or a dict of those: where the n-step windows end
    next_observations: PyTorchObs
    #: ``[batch, 1]`` float32: 1 if the window ends in a termination
    dones: th.Tensor
    #: ``[batch, 1]`` float32: n-step returns
    rewards: th.Tensor
    #: ``[batch, 1]`` float32: ``gamma ** k``, with ``k`` the steps that the return sums
    discounts: th.Tensor
    #: ``[batch, 1]`` float32: importance-sampling weights, the largest of the batch, or of the memory, is 1
    weights: th.Tensor
    #: ``[batch]`` int64: ``slot * n_envs + env``, for ``update_priorities``
    leaf_indices: th.Tensor


#: What an update takes
Samples = PrioritizedReplayBufferSamples | ReplayBufferSamples | DictReplayBufferSamples

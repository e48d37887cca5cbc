"""
MinAtar (Young & Tian 2019, https://arxiv.org/abs/1903.03176): five games of the size of ten by ten, for comparisons on a CPU.
Importing this module registers them; it needs ``pip install MinAtar``.
"""

import minatar.gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

minatar.gym.register_envs()


class SmallCNN(BaseFeaturesExtractor):
    """
    MinAtar's own convolution: 16 filters of 3x3. Its hidden layer of 128 units is the policy's ``net_arch``.

    :param observation_space: ``[10, 10, channels]`` bool
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        height, width, channels = observation_space.shape
        super().__init__(observation_space, features_dim=16 * (height - 2) * (width - 2))
        self.cnn = nn.Sequential(nn.Conv2d(channels, 16, kernel_size=3), nn.ReLU(), nn.Flatten())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``[batch, 10, 10, channels]`` float32
        :return: ``[batch, 1024]``
        """
        return self.cnn(observations.permute(0, 3, 1, 2))

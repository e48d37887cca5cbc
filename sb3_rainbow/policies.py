"""
Policies: SB3's Q-network, with dueling streams (Wang et al. 2016), noisy layers (Fortunato et al. 2018) and distributions of
the return (Bellemare et al. 2017).
"""

from itertools import pairwise
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn

from sb3_rainbow.heads import make_head
from sb3_rainbow.noisy import SIGMA0, NoisyLinear

#: Adam's epsilon (Rainbow, table 1)
ADAM_EPS = 1.5e-4


def adam_kwargs(given: dict[str, Any] | None) -> dict[str, Any]:
    """
    Rainbow's epsilon for Adam, and its fused form: one pass over the parameters instead of eleven.

    :param given: keyword arguments that the user wants
    :return: those, and ours where they say nothing
    """
    given = given or {}
    fused = not (given.get("foreach") or given.get("differentiable"))  # torch refuses it together with these
    return {"eps": ADAM_EPS, "fused": fused} | given


class NatureConvolutions(NatureCNN):
    """
    The convolutions of ``NatureCNN`` without its linear layer: in Rainbow that layer belongs to the streams, and is noisy.

    :param observation_space: image space, channels first
    :param normalized_image: see ``NatureCNN``
    """

    def __init__(self, observation_space: spaces.Box, normalized_image: bool = False) -> None:
        super().__init__(observation_space, normalized_image=normalized_image)
        self._features_dim = int(self.linear[0].in_features)  # type: ignore[arg-type]
        del self.linear

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``[batch, channels, height, width]``
        :return: ``[batch, features_dim]``
        """
        # The order in which the gradient of the first layer costs a quarter. Parameters stay in their own: optimisers and
        # checkpoints take them as they lie
        return self.cnn(observations.contiguous(memory_format=th.channels_last))


class DataEfficientConvolutions(BaseFeaturesExtractor):
    """
    The small convolutions of data-efficient Rainbow (van Hasselt et al. 2019): 32 and 64 filters of 5x5, stride 5.

    :param observation_space: image space, channels first
    :param normalized_image: whether images are floats from 0 to 1, and not to be checked
    :raises ValueError: if the space is none of images, or of images that are too small
    """

    def __init__(self, observation_space: spaces.Box, normalized_image: bool = False) -> None:
        is_image = is_image_space(observation_space, normalized_image=normalized_image)
        if not is_image or min(observation_space.shape[1:]) < 25:
            raise ValueError(f"observation_space={observation_space}: must be an image, channels first, at least 25 by 25")
        channels, height, width = observation_space.shape
        super().__init__(observation_space, features_dim=64 * (height // 5 // 5) * (width // 5 // 5))
        self.cnn = nn.Sequential(nn.Conv2d(channels, 32, 5, 5), nn.ReLU(), nn.Conv2d(32, 64, 5, 5), nn.ReLU(), nn.Flatten())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``[batch, channels, height, width]``
        :return: ``[batch, features_dim]``
        """
        return self.cnn(observations)


#: Of each stream, where the features extractor is only convolutions
HIDDEN_UNITS: dict[type[BaseFeaturesExtractor], int] = {NatureConvolutions: 512, DataEfficientConvolutions: 256}


#: They do the same in training and in evaluation, and need not be told three times in every update which it is
WITHOUT_MODES = (FlattenExtractor, CombinedExtractor, NatureCNN, *HIDDEN_UNITS)


class Stream(nn.Sequential):
    """
    Layers, noisy or not. The last is float32 under autocast too: actions often differ by less than bfloat16 can tell.
    """

    def forward(self, x: th.Tensor, deterministic: bool = True) -> th.Tensor:
        """
        :param x: ``[batch, in_features]``
        :param deterministic: mean weights, else those under the noise drawn last
        :return: ``[batch, out_features]``
        """
        *hidden, last = self
        for layer in hidden:
            x = self._layer(layer, x, deterministic)
        with th.autocast(x.device.type, enabled=False):
            return self._layer(last, x.float(), deterministic)

    def _layer(self, layer: nn.Module, x: th.Tensor, deterministic: bool) -> th.Tensor:
        return layer(x, deterministic) if isinstance(layer, NoisyLinear) else layer(x)


class NoisyQNetwork(QNetwork):
    """
    Q-network whose fully connected layers can be noisy, and which can give distributions. Without both it is SB3's
    ``QNetwork``, initialised by the same draws.

    :param observation_space: observation space
    :param action_space: action space
    :param features_extractor: network that comes first
    :param features_dim: number of features that it gives
    :param net_arch: sizes of the hidden layers after the features
    :param activation_fn: activation function
    :param normalize_images: divide images by 255
    :param noisy: ``"factorised"``, ``"independent"``, or False
    :param sigma0: initial noise, see ``NoisyLinear``
    :param n_atoms: 1 for Q-values; more for distributions, see ``Categorical``
    :param v_min: smallest return of the distributions; None for quantiles, see ``Quantiles``
    :param v_max: largest return of the distributions; None for quantiles
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        noisy: str | bool = "factorised",
        sigma0: float = 0.5,
        n_atoms: int = 1,
        v_min: float | None = -10.0,
        v_max: float | None = 10.0,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor, features_dim, net_arch, activation_fn, normalize_images
        )
        self.noisy = noisy
        self.sigma0 = sigma0
        self.head = make_head(n_atoms, v_min, v_max)
        self._distribution: dict[str, Any] = {"n_atoms": n_atoms, "v_min": v_min, "v_max": v_max}
        self._scales_images = normalize_images and is_image_space(observation_space)
        self._make_streams()
        self.noisy_layers = [module for module in self.modules() if isinstance(module, NoisyLinear)]

    def _make_streams(self) -> None:
        is_sb3s = not self.noisy and self.head.n_atoms == 1  # then its layers, by the same draws
        self.q_net = Stream(*self.q_net) if is_sb3s else self._make_stream(int(self.action_space.n))

    def _make_stream(self, n_actions: int) -> Stream:
        """Fully connected layers, each but the last followed by an activation."""
        layers: list[nn.Module] = []
        for size, next_size in pairwise([self.features_dim, *self.net_arch, n_actions * self.head.n_atoms]):
            linear = NoisyLinear(size, next_size, str(self.noisy), self.sigma0) if self.noisy else nn.Linear(size, next_size)
            layers += [linear, self.activation_fn()]
        return Stream(*layers[:-1])

    def _outputs(self, features: th.Tensor, deterministic: bool, relative: bool) -> th.Tensor:
        return self.q_net(features, deterministic).unflatten(1, (-1, self.head.n_atoms))

    def reset_noise(self) -> None:
        """Draw new noise for every noisy layer, independently."""
        for layer in self.noisy_layers:
            layer.reset_noise()

    def train_features(self, mode: bool) -> None:
        """
        In an update, let BatchNorm count, and Dropout leave out, only in the pass that is learned from.

        :param mode: whether this is the one; in evaluation mode none is
        """
        mode = mode and self.training
        if type(self.features_extractor) not in WITHOUT_MODES and self.features_extractor.training != mode:
            self.features_extractor.train(mode)

    def mean_sigma(self) -> float:
        """:return: mean of ``|sigma|`` over all weights and biases of the noisy layers; 0 without any"""
        sigmas = [sigma.detach().abs() for layer in self.noisy_layers for sigma in (layer.weight_sigma, layer.bias_sigma)]
        return float(sum(sigma.sum() for sigma in sigmas) / max(1, sum(sigma.numel() for sigma in sigmas)))

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """
        SB3's, but for images: the same numbers with one temporary instead of two, which cost more than the division.

        :param obs: ``[batch, *obs_shape]``, or a dict of those
        :param features_extractor: what comes after the scaling
        :return: ``[batch, features_dim]``
        """
        if self._scales_images and isinstance(obs, th.Tensor) and obs.dtype == th.uint8:
            return features_extractor(obs.float().div_(255))
        return super().extract_features(obs, features_extractor)

    def forward(self, obs: PyTorchObs, deterministic: bool = True, relative: bool = False, by_atom: bool = False) -> th.Tensor:
        """
        :param obs: ``[batch, *obs_shape]``, or a dict of those
        :param deterministic: mean weights, else those under the noise drawn last
        :param relative: only the order of the actions is wanted: what they have in common is left out, where that is cheaper
        :param by_atom: give what ``head`` makes Q-values of
        :return: ``[batch, n_actions]``: Q-values; ``[batch, n_actions, n_atoms]`` with ``by_atom``
        """
        features = self.extract_features(obs, self.features_extractor)
        outputs = self._outputs(features, deterministic, relative and self.head.shift_keeps_order)
        return outputs if by_atom else self.head(outputs)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        """
        Greedy actions; under new noise unless ``deterministic``. Whether the network is in training mode plays no role: SB3
        acts in evaluation mode.

        :param observation: ``[batch, *obs_shape]``, or a dict of those
        :param deterministic: mean weights, and no random number is drawn
        :return: ``[batch]`` int64
        """
        if not deterministic:
            self.reset_noise()
        # By name: a call would go to the compiled form, if there is one, and that is for the batches of updates alone
        return self.forward(observation, deterministic, relative=True).argmax(dim=1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parts = {"noisy": self.noisy, "sigma0": self.sigma0} | self._distribution
        return super()._get_constructor_parameters() | parts


class DuelingQNetwork(NoisyQNetwork):
    r"""
    :math:`q(s, a) = v(s) + A(s, a) - \frac{1}{|A|} \sum_{a'} A(s, a')` (Wang et al. 2016, eq. 9); of
    distributions, each atom's logit (Rainbow, section "The Integrated Agent"). The streams of value and advantage part right
    after the features; each has the hidden layers of ``net_arch``. Parameters: see ``NoisyQNetwork``.
    """

    def _make_streams(self) -> None:
        del self.q_net  # SB3's single stream
        self.value_stream = self._make_stream(1)
        self.advantage_stream = self._make_stream(int(self.action_space.n))

    def _outputs(self, features: th.Tensor, deterministic: bool, relative: bool) -> th.Tensor:
        advantages = self.advantage_stream(features, deterministic).unflatten(1, (-1, self.head.n_atoms))
        if relative:  # the value is half of the work, and the same for all actions
            return advantages
        values = self.value_stream(features, deterministic)[:, None]
        return values + advantages - advantages.mean(dim=1, keepdim=True)


class RainbowPolicy(DQNPolicy):
    """
    Policy with an online and a target Q-network. ``RainbowDQN`` passes on its own ``dueling``, ``noisy``,
    ``sigma0``, ``n_atoms``, ``v_min`` and ``v_max``.

    :param observation_space: observation space
    :param action_space: action space
    :param lr_schedule: learning rate schedule
    :param net_arch: sizes of the hidden layers after the features: of each stream, with ``dueling``. By default
        ``[512]`` after ``NatureConvolutions``, ``[256]`` after ``DataEfficientConvolutions``, none after ``NatureCNN``, else
        ``[64, 64]``
    :param activation_fn: activation function
    :param features_extractor_class: features extractor; None for the class's own default
    :param features_extractor_kwargs: its keyword arguments
    :param normalize_images: divide images by 255
    :param optimizer_class: optimiser, ``th.optim.Adam`` by default
    :param optimizer_kwargs: its keyword arguments, without the learning rate
    :param dueling: value and advantage streams
    :param noisy: ``"factorised"`` or ``"independent"`` noise in the fully connected layers, or False
    :param sigma0: initial noise, see ``NoisyLinear``; None for the default of the kind
    :param n_atoms: 1 for Q-values; more for distributions, see ``Categorical``
    :param v_min: smallest return of the distributions; None for quantiles, see ``Quantiles``
    :param v_max: largest return of the distributions; None for quantiles
    :raises ValueError: if ``features_extractor_kwargs`` set ``features_dim``, where the hidden layer is that of the streams
    """

    q_net: NoisyQNetwork
    q_net_target: NoisyQNetwork

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        dueling: bool = True,
        noisy: str | bool = "factorised",
        sigma0: float | None = None,
        n_atoms: int = 1,
        v_min: float | None = -10.0,
        v_max: float | None = 10.0,
    ) -> None:
        self.dueling = dueling
        self.noisy = noisy
        self.sigma0 = SIGMA0[str(noisy or "factorised")] if sigma0 is None else sigma0
        self._distribution: dict[str, Any] = {"n_atoms": n_atoms, "v_min": v_min, "v_max": v_max}
        if features_extractor_class is None:
            features_extractor_class = self._default_extractor()
        if features_extractor_class in HIDDEN_UNITS:
            given = features_extractor_kwargs or {}
            if "features_dim" in given:
                name = features_extractor_class.__name__
                raise ValueError(f"features_extractor_kwargs={given}: {name} has no linear layer, set net_arch")
            if net_arch is None:
                net_arch = [HIDDEN_UNITS[features_extractor_class]]
            if not normalize_images:  # as SB3 does for its own
                features_extractor_kwargs = {"normalized_image": True} | given
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
        )

    def _default_extractor(self) -> type[BaseFeaturesExtractor]:
        return FlattenExtractor

    def make_q_net(self) -> NoisyQNetwork:
        """:return: a new Q-network, with a features extractor of its own"""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        network_class = DuelingQNetwork if self.dueling else NoisyQNetwork
        return network_class(**net_args, noisy=self.noisy, sigma0=self.sigma0, **self._distribution).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parts = {"dueling": self.dueling, "noisy": self.noisy, "sigma0": self.sigma0} | self._distribution
        return super()._get_constructor_parameters() | parts


MlpPolicy = RainbowPolicy


class CnnPolicy(RainbowPolicy):
    """
    Policy for images. After the convolutions come one or two streams with 512 hidden units (Rainbow's network);
    without dueling and noise it is SB3's ``CnnPolicy``. Parameters: see ``RainbowPolicy``.
    """

    def _default_extractor(self) -> type[BaseFeaturesExtractor]:
        return NatureConvolutions if self.dueling or self.noisy else NatureCNN


class DataEfficientCnnPolicy(RainbowPolicy):
    """Policy for images, with the small network of van Hasselt et al. 2019. Parameters: see ``RainbowPolicy``."""

    def _default_extractor(self) -> type[BaseFeaturesExtractor]:
        return DataEfficientConvolutions


class MultiInputPolicy(RainbowPolicy):
    """Policy for dict observations. Parameters: see ``RainbowPolicy``."""

    def _default_extractor(self) -> type[BaseFeaturesExtractor]:
        return CombinedExtractor

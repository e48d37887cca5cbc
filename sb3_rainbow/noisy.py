"""Linear layers with learned noise (Fortunato et al. 2018, "Noisy Networks for Exploration", NoisyNet below)."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F

#: Default of ``sigma0`` for each kind of noise (NoisyNet section 3.2)
SIGMA0 = {"factorised": 0.5, "independent": 0.017}

#: What the argument ``noisy`` may be
NOISY = (*SIGMA0, False)

#: From so many rows on, forming the noisy weights is cheaper than a second product
MATERIALISE_FROM = 32


class NoisyLinear(nn.Module):
    r"""
    :math:`y = (\mu^w + \sigma^w \odot \varepsilon^w) x + \mu^b + \sigma^b \odot \varepsilon^b` (NoisyNet eq. 9).

    The noise is either *factorised*, :math:`\varepsilon^w_{ij} = f(\varepsilon_i) f(\varepsilon_j)`,
    :math:`\varepsilon^b_j = f(\varepsilon_j)` with :math:`f(x) = \mathrm{sgn}(x) \sqrt{|x|}` (eq. 10 and 11), or
    *independent*: every :math:`\varepsilon` its own unit normal.

    Whether there is noise is said by each call, not by train and eval mode. The noise is no part of the ``state_dict``: it is
    drawn by ``reset_noise`` and stays until the next draw.

    :param in_features: size of each input
    :param out_features: size of each output
    :param noise: ``"factorised"`` or ``"independent"``
    :param sigma0: initial noise: ``sigma0 / sqrt(in_features)`` if factorised, ``sigma0`` if independent
    """

    def __init__(self, in_features: int, out_features: int, noise: str = "factorised", sigma0: float = 0.5) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.noise = noise
        self.sigma0 = sigma0
        self.weight_mu = nn.Parameter(th.empty(out_features, in_features))
        self.weight_sigma = nn.Parameter(th.empty(out_features, in_features))
        self.bias_mu = nn.Parameter(th.empty(out_features))
        self.bias_sigma = nn.Parameter(th.empty(out_features))
        self.epsilon: th.Tensor
        n_weight_noise = in_features if noise == "factorised" else in_features * out_features
        self.register_buffer("epsilon", th.zeros(n_weight_noise + out_features), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as in NoisyNet section 3.2."""
        factorised = self.noise == "factorised"
        bound = math.sqrt((1 if factorised else 3) / self.in_features)
        sigma = self.sigma0 / math.sqrt(self.in_features) if factorised else self.sigma0
        for mu in (self.weight_mu, self.bias_mu):
            nn.init.uniform_(mu, -bound, bound)
        for deviation in (self.weight_sigma, self.bias_sigma):
            nn.init.constant_(deviation, sigma)

    def reset_noise(self) -> None:
        """Draw new noise, from torch's global generator of the layer's device."""
        self.epsilon.normal_()
        if self.noise == "factorised":
            th.copysign(self.epsilon.abs().sqrt_(), self.epsilon, out=self.epsilon)

    @property
    def weight_noise(self) -> th.Tensor:
        r"""``[in_features]``: :math:`f(\varepsilon_i)` of the inputs; independent: ``[out_features, in_features]``."""
        noise = self.epsilon[: -self.out_features]
        return noise if self.noise == "factorised" else noise.view_as(self.weight_mu)

    @property
    def bias_noise(self) -> th.Tensor:
        r"""``[out_features]``: :math:`f(\varepsilon_j)` of the outputs; independent: noise of the biases alone."""
        return self.epsilon[-self.out_features :]

    def forward(self, x: th.Tensor, deterministic: bool) -> th.Tensor:
        """
        :param x: ``[..., in_features]`` float32, or bfloat16 under autocast
        :param deterministic: use the mean weights; else those under the noise drawn last
        :return: ``[..., out_features]``
        """
        if deterministic:
            return F.linear(x, self.weight_mu, self.bias_mu)
        weight_noise, bias_noise = self.weight_noise, self.bias_noise
        bias = th.addcmul(self.bias_mu, self.bias_sigma, bias_noise)
        if self.noise == "factorised":
            if len(x) < MATERIALISE_FROM and not th.is_grad_enabled():
                # f(e_j) (sigma (f(e_i) x)): acting on few observations, forming the weights would cost more than all the rest
                return F.linear(x, self.weight_mu, bias) + bias_noise * F.linear(x * weight_noise, self.weight_sigma)
            # Two passes over the memory, and nothing large is kept for the gradient
            weight = th.addcmul(self.weight_mu, self.weight_sigma * weight_noise, bias_noise[:, None])
        else:
            weight = th.addcmul(self.weight_mu, self.weight_sigma, weight_noise)
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        """:return: what ``print`` shows"""
        return f"{self.in_features}, {self.out_features}, noise={self.noise!r}, sigma0={self.sigma0}"

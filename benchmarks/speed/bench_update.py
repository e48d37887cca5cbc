"""
One update of the network: ours with its options, a straightforward one, and SB3's DQN, each in a process of its own.

``python benchmarks/speed/bench_update.py``. Batch 32 of Atari frames, 4 actions, milliseconds per ``train(1)``, one thread.
"""

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from machine import describe, machine
from stable_baselines3 import DQN
from stable_baselines3.common.logger import configure
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn
from torch.nn import functional as F
from turns import serve, spread, take_turns

from sb3_rainbow import PrioritizedNStepReplayBuffer, RainbowDQN

HERE = Path(__file__).parent
BATCH_SIZE = 32


class Frames(gym.Env[np.ndarray, int]):
    """Has the spaces of an Atari game, and is never played."""

    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = spaces.Discrete(4)


class NaiveNoisyLinear(nn.Module):
    """Factorised noise as in most implementations: a buffer of the weights' shape, and a sum of products in every forward."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight_mu = nn.Parameter(th.empty(out_features, in_features).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(th.full((out_features, in_features), 0.5 * bound))
        self.bias_mu = nn.Parameter(th.empty(out_features).uniform_(-bound, bound))
        self.bias_sigma = nn.Parameter(th.full((out_features,), 0.5 * bound))
        self.register_buffer("weight_epsilon", th.zeros(out_features, in_features))
        self.register_buffer("bias_epsilon", th.zeros(out_features))

    def reset_noise(self) -> None:
        """Draw anew."""
        outputs, inputs = (x.sign() * x.abs().sqrt() for x in map(th.randn, self.weight_epsilon.shape))
        self.weight_epsilon.copy_(th.outer(outputs, inputs))
        self.bias_epsilon.copy_(outputs)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Noisy output."""
        weight = self.weight_mu + self.weight_sigma * self.weight_epsilon
        return F.linear(x, weight, self.bias_mu + self.bias_sigma * self.bias_epsilon)


class NaiveNetwork(nn.Module):
    """Convolutions of Mnih et al. 2015, two noisy streams."""

    def __init__(self, n_actions: int, noisy_linear: type[nn.Module] = NaiveNoisyLinear) -> None:
        super().__init__()
        layers = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.value, self.advantage = (
            nn.Sequential(noisy_linear(3136, 512), nn.ReLU(), noisy_linear(512, n)) for n in (1, n_actions)
        )

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Q-values under new noise."""
        for layer in self.modules():
            if hasattr(layer, "reset_noise"):
                layer.reset_noise()
        x = self.convolutions(x.float() / 255.0)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(dim=1, keepdim=True)


class Naive:
    """
    Three forward passes, each with its own noise and materialised weights, and Adam as it comes; sampling is ours.

    :param buffer: where to sample
    """

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer
        self.online, self.target = NaiveNetwork(4), NaiveNetwork(4)
        self.optimizer = th.optim.Adam(self.online.parameters(), lr=1e-4, eps=1.5e-4)

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """One update."""
        batch = self.buffer.sample(batch_size, beta=0.4)
        with th.no_grad():
            actions = self.online(batch.next_observations).argmax(dim=1, keepdim=True)
            values = self.target(batch.next_observations).gather(1, actions)
            targets = batch.rewards + (1 - batch.dones) * batch.discounts * values
        q_values = self.online(batch.observations).gather(1, batch.actions.long())
        loss = (batch.weights * F.smooth_l1_loss(q_values, targets, reduction="none")).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.online.parameters(), 10)
        self.optimizer.step()
        loss.item()
        self.buffer.update_priorities(batch.leaf_indices, (targets - q_values).detach().abs() + 1e-6)


def make(algorithm: type[OffPolicyAlgorithm], **arguments: Any) -> Any:
    """
    :param algorithm: class
    :param arguments: of its constructor
    :return: a model with some transitions in its replay buffer
    """
    model = algorithm("CnnPolicy", Frames(), buffer_size=2000, batch_size=BATCH_SIZE, seed=0, **arguments)
    rng = np.random.default_rng(0)
    obs = np.zeros((1, 4, 84, 84), np.uint8)
    for i in range(1000):
        next_obs = np.concatenate((obs[:, 1:], rng.integers(0, 255, (1, 1, 84, 84), np.uint8)), 1)
        reward = float(rng.random() < 0.1)
        model.replay_buffer.add(obs, next_obs, np.array([i % 4]), np.array([reward]), np.array([i % 100 == 0]), [{}])
        obs = next_obs
    model.set_logger(configure(None, []))
    return model


def dying(train: Callable[[RainbowDQN, int, int], None]) -> Any:
    """
    :param train: updates the model
    :return: ours with all six parts in bfloat16, when an eighth of the last convolution's channels is dead for so long that
        the means of their weights' gradients have fallen as low as float32 goes
    """
    model = make(RainbowDQN, n_atoms=51, amp="bf16")
    model.train = partial(train, model)
    *_, last = (layer for layer in model.q_net.modules() if isinstance(layer, nn.Conv2d))
    nn.init.constant_(last.bias[: last.out_channels // 8], -1e3)
    model.train(1, BATCH_SIZE)
    for state in model.policy.optimizer.state.values():
        state["exp_avg"][state["exp_avg"] == 0] = 4 * 2**-149  # times 0.9, it rounds to itself
    return model


#: By name, what has ``train(gradient_steps, batch_size)``
CONTENDERS: dict[str, Callable[[], Any]] = {
    "sb3-rainbow": lambda: make(RainbowDQN),
    "sb3-rainbow, six parts": lambda: make(RainbowDQN, n_atoms=51),
    "sb3-rainbow, six parts, bf16": lambda: make(RainbowDQN, n_atoms=51, amp="bf16"),
    "sb3-rainbow, bf16": lambda: make(RainbowDQN, amp="bf16"),
    "sb3-rainbow, compiled": lambda: make(RainbowDQN, compile=True),
    "sb3-rainbow, bf16, compiled": lambda: make(RainbowDQN, amp="bf16", compile=True),
    "sb3-rainbow, without noise": lambda: make(RainbowDQN, noisy=False),
    "sb3-rainbow, dying": lambda: dying(RainbowDQN.train),
    "sb3-rainbow, dying, not flushed": lambda: dying(RainbowDQN.train.__wrapped__),
    "naive": lambda: Naive(make(DQN, replay_buffer_class=PrioritizedNStepReplayBuffer).replay_buffer),
    "SB3 DQN": lambda: make(DQN),
}


def updates(model: Any, amount: int) -> dict[str, float]:
    """
    :param model: what is trained
    :param amount: of updates
    :return: milliseconds of an update, and page faults in it
    """
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start = time.perf_counter()
    for _ in range(amount):
        model.train(1, BATCH_SIZE)
    if th.cuda.is_available():
        th.cuda.synchronize()
    milliseconds = (time.perf_counter() - start) / amount * 1e3
    return {"ms": milliseconds, "faults": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / amount}


def report(results: dict[str, Any]) -> str:
    """
    :param results: all of them
    :return: a table in Markdown
    """
    times = {name: np.array([answer["ms"] for answer in answers]) for name, answers in results["updates"].items()}
    lines = ["| update | ms, median (quartiles) | over the naive one | over SB3's DQN | page faults |", "|---" * 5 + "|"]
    for name, answers in results["updates"].items():
        cells = [spread(times[name], ".1f")]
        cells += [spread(times[name] / times[base], ".2f") for base in ("naive", "SB3 DQN")]
        lines.append(f"| {name} | {' | '.join(cells)} | {np.median([answer['faults'] for answer in answers]):.0f} |")
    lines += [f"\nnot measured: {name}: {reason}" for name, reason in results["failed"].items()]
    return "\n".join([*lines, "", f"One thread. {describe(results['machine'])}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--serve", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        th.set_num_threads(1)
        model = CONTENDERS[args.serve]()
        updates(model, 5)
        serve(lambda amount: updates(model, amount))
        return
    commands = {name: [__file__, "--serve", name] for name in CONTENDERS}
    answers, failed = take_turns(commands, args.rounds, args.updates)
    results = {"machine": machine(), "updates": answers, "failed": failed}
    args.out.mkdir(exist_ok=True)
    (args.out / "update.json").write_text(json.dumps(results))
    (args.out / "update.md").write_text(report(results))
    print(report(results))


if __name__ == "__main__":
    main()

"""
Why does an agent score no better? Its values against the returns that really followed, what the noise and short floats change,
and how much noise is left: ``python benchmarks/learning/diagnose.py logs/rainbow/BreakoutNoFrameskip-v4_1``.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import VecEnv

from sb3_rainbow import RainbowDQN
from sb3_rainbow.noisy import NoisyLinear
from sb3_rainbow.sweep.evaluation import EpsilonGreedy, load_run


def q_values(model: DQN, obs: th.Tensor) -> dict[str, np.ndarray]:
    """
    :param model: trained model
    :param obs: ``[batch, *obs_shape]``
    :return: Q-values, ``[batch, n_actions]``, by the way in which they were computed
    """
    with th.no_grad():
        ways = {"mean": model.q_net(obs)}
        if isinstance(model, RainbowDQN) and model.noisy:
            model.q_net.reset_noise()
            ways["noise"] = model.q_net(obs, deterministic=False)
        # As in an update with amp="bf16": the networks in bfloat16, what follows in float32
        with th.autocast(model.device.type, th.bfloat16):
            outputs = model.q_net(obs, by_atom=True) if isinstance(model, RainbowDQN) else model.q_net(obs)
        ways["bf16"] = model.q_net.head(outputs.float()) if isinstance(model, RainbowDQN) else outputs.float()
    return {way: values.cpu().numpy() for way, values in ways.items()}


def play(model: DQN, env: VecEnv, n_steps: int, epsilon: float, seed: int) -> Iterator[dict[str, Any]]:
    """
    :param model: trained model
    :param env: the environments that it was trained in
    :param n_steps: of each environment
    :param epsilon: probability of a random action
    :param seed: of the random actions
    :return: for each step ``q`` of ``q_values``, ``actions``, ``rewards`` and ``dones``, each ``[n_envs, ...]``
    """
    player = EpsilonGreedy(model, epsilon, seed)
    obs: Any = env.reset()
    for _ in range(n_steps):
        q = q_values(model, model.policy.obs_to_tensor(obs)[0])  # type: ignore[arg-type]
        actions, _ = player.predict(obs, deterministic=True)
        obs, rewards, dones, _ = env.step(actions)
        yield {"q": q, "actions": actions, "rewards": rewards, "dones": dones}


def discounted(rewards: np.ndarray, dones: np.ndarray, gamma: float) -> np.ndarray:
    r"""
    :math:`G_t = r_{t+1} + \gamma G_{t+1}`; NaN where the episode was not played to its end.

    :param rewards: ``[n_steps, n_envs]``
    :param dones: ``[n_steps, n_envs]``
    :param gamma: discount factor
    :return: ``[n_steps, n_envs]``
    """
    returns = np.empty(rewards.shape)
    later = np.full(rewards.shape[1], np.nan)
    for t in reversed(range(len(rewards))):
        later = rewards[t] + gamma * np.where(dones[t], 0.0, later)
        returns[t] = later
    return returns


def diagnose(model: DQN, steps: list[dict[str, Any]]) -> dict[str, float]:
    """
    :param model: trained model
    :param steps: of ``play``
    :return: name: number
    """
    stacked = {key: np.array([step[key] for step in steps]) for key in ("actions", "rewards", "dones")}
    q = {way: np.array([step["q"][way] for step in steps]) for way in steps[0]["q"]}
    best = q["mean"].argmax(2)
    ordered = np.sort(q["mean"], axis=2)
    returns = discounted(stacked["rewards"], stacked["dones"], model.gamma)
    ended = ~np.isnan(returns)
    if not ended.any():
        raise SystemExit(f"no episode ended within {len(steps)} steps: raise --steps")
    predicted = np.take_along_axis(q["mean"], stacked["actions"][..., None], 2)[..., 0]
    numbers = {
        "steps that count": float(ended.sum()),
        "return that followed, mean": returns[ended].mean(),
        "return that followed, 99th percentile": float(np.percentile(returns[ended], 99)),
        "Q-value of the action taken, mean": predicted[ended].mean(),
        "its correlation with the return": float(np.corrcoef(predicted[ended], returns[ended])[0, 1]),
        "best action's Q-value over the second's, median": float(np.median(ordered[..., -1] - ordered[..., -2])),
    }
    for way in q.keys() - {"mean"}:
        chosen = q[way].argmax(2)
        lost = ordered[..., -1] - np.take_along_axis(q["mean"], chosen[..., None], 2)[..., 0]
        numbers |= {f"{way}: share of other actions": (chosen != best).mean(), f"{way}: Q-value lost per step": lost.mean()}
    numbers["random actions: Q-value lost per step"] = (ordered[..., -1] - ordered.mean(axis=2)).mean()
    for name, layer in model.q_net.named_modules():
        if isinstance(layer, NoisyLinear):
            # One output is enough: the first value is the same for all weights
            first = NoisyLinear(layer.in_features, 1, layer.noise, layer.sigma0).weight_sigma[0, 0]
            numbers[f"{name}: mean |sigma| over its first value"] = float(layer.weight_sigma.detach().abs().mean() / first)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of one run of RL Zoo, of RainbowDQN or DQN")
    parser.add_argument("--steps", type=int, default=4000, help="to play in each environment (4000)")
    parser.add_argument("--epsilon", type=float, default=0.05, help="probability of a random action (0.05)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model, env = load_run(args.run, args.seed)
    if not isinstance(model, DQN):
        raise SystemExit(f"{args.run}: must be of RainbowDQN or DQN, not {type(model).__name__}")
    numbers = diagnose(model, list(play(model, env, args.steps, args.epsilon, args.seed)))
    for name, number in sorted(numbers.items()):
        print(f"| {name} | {number:.3g} |")


if __name__ == "__main__":
    main()

"""
Play whole games with a trained agent and print its unclipped scores:
``python benchmarks/learning/evaluate.py logs/rainbow/CartPole-v1_1 --games 20``.
"""

import argparse
import csv
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3.import_envs  # noqa: F401  (registers Atari)
import yaml
from rl_zoo3 import ALGOS, create_test_env, get_saved_hyperparams
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

#: ``n_games, epsilon, deterministic`` of the usual protocols
PROTOCOLS: dict[str, dict[str, Any]] = {
    # The project's notebook: 50 games, 5% random actions
    "notebook": {"n_games": 50, "epsilon": 0.05, "deterministic": True},
    # Mnih et al. 2015 and after: nearly greedy
    "usual": {"n_games": 50, "epsilon": 0.001, "deterministic": True},
}


class EpsilonGreedy:
    """
    Actions of a model, each replaced by a random one with probability epsilon.

    :param model: trained model
    :param epsilon: probability of a random action
    :param seed: of the coins and the random actions
    """

    def __init__(self, model: BaseAlgorithm, epsilon: float, seed: int) -> None:
        self._model = model
        self._epsilon = epsilon
        self._generator = np.random.default_rng(seed)
        if hasattr(model, "exploration_rate"):
            model.exploration_rate = 0.0  # not DQN's own coins as well, with deterministic=False

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """As SB3's."""
        actions, state = self._model.predict(observation, state, episode_start, deterministic)
        explore = self._generator.random(len(actions)) < self._epsilon
        random_actions = self._generator.integers(self._model.action_space.n, size=len(actions))
        return np.where(explore, random_actions, actions), state


def evaluate(
    model: BaseAlgorithm, env: VecEnv, n_games: int, epsilon: float = 0.0, deterministic: bool = True, seed: int = 0
) -> list[float]:
    """
    Scores of whole games, as the environment's Monitor counts them: rewards not clipped, lost lives no end.

    :param model: trained model
    :param env: environments, each with SB3's Monitor
    :param n_games: number of games
    :param epsilon: probability of a random action
    :param deterministic: without noise
    :param seed: of the random actions
    :return: one score per game
    """
    scores, _ = evaluate_policy(
        EpsilonGreedy(model, epsilon, seed), env, n_games, deterministic=deterministic, return_episode_rewards=True
    )
    return scores


def load_run(run: Path, seed: int = 0, **env_kwargs: Any) -> tuple[BaseAlgorithm, VecEnv]:
    """
    :param run: folder of one run of RL Zoo: ``<logs>/<algo>/<env>_<number>``
    :param seed: of the environment
    :param env_kwargs: for the environment, beside those that it was trained with
    :return: the model as training left it, and its environment
    """
    args = yaml.load((next(run.glob("*/args.yml"))).read_text(), yaml.UnsafeLoader)
    for package in args["gym_packages"]:
        importlib.import_module(package)
    name = args["env"].replace("/", "-")
    hyperparams, stats_path = get_saved_hyperparams(str(run / name), test_mode=True)
    kwargs = yaml.safe_load(str(hyperparams.pop("env_kwargs", "{}"))) or {}
    env = create_test_env(
        args["env"],
        stats_path=stats_path,
        seed=seed,
        hyperparams=hyperparams,
        env_kwargs=kwargs | env_kwargs,
        should_render=False,
    )
    # No memory for a replay that is not used
    return ALGOS[args["algo"]].load(run / f"{name}.zip", buffer_size=1), env


def summary(scores: list[float]) -> str:
    """
    :param scores: of the games
    :return: one line
    """
    return (
        f"{len(scores)} games: mean {np.mean(scores):.1f}, sd {np.std(scores):.1f}, median {np.median(scores):.1f}, "
        f"min {np.min(scores):.1f}, max {np.max(scores):.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of one run of RL Zoo")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="a named setting; the arguments below change it")
    parser.add_argument("--games", type=int, help="number of games (20)")
    parser.add_argument("--epsilon", type=float, help="probability of a random action (0)")
    parser.add_argument("--noise", action="store_true", help="act under the noise of the noisy layers")
    parser.add_argument("--sticky", type=float, help="probability that Atari repeats the last action")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, help="write the scores here")
    args = parser.parse_args()

    settings = {"n_games": 20} | PROTOCOLS.get(args.protocol, {})
    given = {"n_games": args.games, "epsilon": args.epsilon, "deterministic": False if args.noise else None}
    settings |= {name: value for name, value in given.items() if value is not None}
    env_kwargs = {} if args.sticky is None else {"repeat_action_probability": args.sticky}
    model, env = load_run(args.run, args.seed, **env_kwargs)
    scores = evaluate(model, env, seed=args.seed, **settings)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            csv.writer(file).writerows([("score",), *((score,) for score in scores)])
    print(settings, summary(scores), sep="\n")


if __name__ == "__main__":
    main()

"""Scores of a trained agent over whole games."""

import csv
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_rainbow.arguments import WITHOUT_REPLAY


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
        """
        As SB3's.

        :param observation: of all environments
        :param state: of a recurrent policy
        :param episode_start: where an episode begins
        :param deterministic: without noise
        :return: actions, and the state
        """
        actions, state = self._model.predict(observation, state, episode_start, deterministic)
        if self._epsilon == 0:
            return actions, state  # they need not be discrete
        explore = self._generator.random(len(actions)) < self._epsilon
        space: Any = self._model.action_space
        random_actions = self._generator.integers(space.n, size=len(actions))
        return np.where(explore, random_actions, actions), state


def evaluate(
    model: BaseAlgorithm,
    env: VecEnv,
    n_games: int = 20,
    epsilon: float = 0.0,
    deterministic: bool = True,
    seed: int = 0,
    callback: Callable[[dict[str, Any], dict[str, Any]], None] | None = None,
) -> list[float]:
    """
    Scores of whole games, as the environment's Monitor counts them: rewards not clipped, lost lives no end.

    :param model: trained model
    :param env: environments, each with SB3's Monitor
    :param n_games: number of games
    :param epsilon: probability of a random action
    :param deterministic: without noise
    :param seed: of the random actions
    :param callback: called after every step, see SB3's ``evaluate_policy``
    :return: one score per game
    """
    player: Any = EpsilonGreedy(model, epsilon, seed)
    options: dict[str, Any] = {"deterministic": deterministic, "callback": callback}
    scores: Any = evaluate_policy(player, env, n_games, return_episode_rewards=True, **options)[0]
    return list(scores)


def load_run(run: Path, seed: int = 0, vec_env_wrapper: bool = True, **env_kwargs: Any) -> tuple[BaseAlgorithm, VecEnv]:
    """
    :param run: folder of one run of RL Zoo: ``<logs>/<algo>/<env>_<number>``
    :param seed: of the environment
    :param vec_env_wrapper: as it was trained with; without, an agent of ``AtariVecEnv`` plays in SB3's own wrappers
    :param env_kwargs: for the environment, beside those that it was trained with
    :return: the model as training left it, and its environment
    """
    import rl_zoo3.import_envs  # noqa: F401  (registers Atari)
    from rl_zoo3 import ALGOS, create_test_env, get_saved_hyperparams

    args = yaml.load((next(run.glob("*/args.yml"))).read_text(), yaml.UnsafeLoader)
    for package in args["gym_packages"]:
        importlib.import_module(package)
    name = args["env"].replace("/", "-")
    hyperparams, stats_path = get_saved_hyperparams(str(run / name), test_mode=True)
    if not vec_env_wrapper:
        hyperparams.pop("vec_env_wrapper", None)
    configured = hyperparams.pop("env_kwargs", None)
    env = create_test_env(
        args["env"],
        stats_path=stats_path,
        seed=seed,
        hyperparams=hyperparams,
        env_kwargs=(args["env_kwargs"] or configured or {}) | env_kwargs,
        should_render=False,
    )
    return ALGOS[args["algo"]].load(run / f"{name}.zip", **WITHOUT_REPLAY), env


def write_scores(scores: list[float], path: Path) -> None:
    """
    :param scores: of the games
    :param path: CSV file, one line per game
    """
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("score",), *((score,) for score in scores)])


def summary(scores: list[float]) -> str:
    """
    :param scores: of the games
    :return: one line
    """
    return (
        f"{len(scores)} games: mean {np.mean(scores):.1f}, sd {np.std(scores):.1f}, median {np.median(scores):.1f}, "
        f"min {np.min(scores):.1f}, max {np.max(scores):.1f}"
    )

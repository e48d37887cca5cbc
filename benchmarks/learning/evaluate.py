"""
Play whole games with a trained agent and print its unclipped scores:
``python benchmarks/learning/evaluate.py logs/rainbow/CartPole-v1_1 --games 20``.
"""

import argparse
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np

from sb3_rainbow.sweep.evaluation import evaluate, load_run, summary, write_scores

#: ``n_games, epsilon, deterministic`` of the usual protocols
PROTOCOLS: dict[str, dict[str, Any]] = {
    # The project's notebook: 50 games, 5% random actions
    "notebook": {"n_games": 50, "epsilon": 0.05, "deterministic": True},
    # Mnih et al. 2015 and after: nearly greedy
    "usual": {"n_games": 50, "epsilon": 0.001, "deterministic": True},
}


def film(run: Path, game: int, score: float, path: Path, settings: dict[str, Any], seed: int, **loading: Any) -> None:
    """
    Play the same games again up to one, and film that.

    :param run: folder of one run of RL Zoo
    :param game: number of the game
    :param score: that it had
    :param path: GIF to write; every second step
    :param settings: arguments of ``evaluate``
    :param seed: of the games
    :param loading: for ``load_run``
    :raises RuntimeError: if the game took another course this time
    """
    model, env = load_run(run, seed, render_mode="rgb_array", **loading)
    frames = []

    def record(seen: dict[str, Any], _: dict[str, Any]) -> None:
        if seen["episode_counts"][0] == game and seen["current_lengths"][0] % 2 == 0:
            frames.append(env.render())

    again = evaluate(model, env, seed=seed, callback=record, **settings | {"n_games": game + 1})[game]
    if again != score:
        raise RuntimeError(
            f"{run}: game {game} scored {again} when filmed, {score} before: the environment is not reproducible"
        )
    imageio.imwrite(path, frames, duration=1000 / 15, loop=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of one run of RL Zoo")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="a named setting; the arguments below change it")
    parser.add_argument("--games", type=int, help="number of games (20)")
    parser.add_argument("--epsilon", type=float, help="probability of a random action (0)")
    parser.add_argument("--noise", action="store_true", help="act under the noise of the noisy layers")
    parser.add_argument("--sticky", type=float, help="probability that Atari repeats the last action")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sb3-wrappers", action="store_true", help="instead of AtariVecEnv, whose films are grey")
    parser.add_argument("--csv", type=Path, help="write the scores here")
    parser.add_argument("--gif", type=Path, help="film the median game")
    args = parser.parse_args()

    settings = {"n_games": 20} | PROTOCOLS.get(args.protocol, {})
    given = {"n_games": args.games, "epsilon": args.epsilon, "deterministic": False if args.noise else None}
    settings |= {name: value for name, value in given.items() if value is not None}
    loading: dict[str, Any] = {"vec_env_wrapper": not args.sb3_wrappers}
    if args.sticky is not None:
        loading["repeat_action_probability"] = args.sticky
    model, env = load_run(args.run, args.seed, **loading)
    scores = evaluate(model, env, seed=args.seed, **settings)
    if args.csv:
        write_scores(scores, args.csv)
    print(settings, summary(scores), sep="\n")
    if args.gif:
        median = int(np.argsort(scores, kind="stable")[(len(scores) - 1) // 2])
        film(args.run, median, scores[median], args.gif, settings, args.seed, **loading)
        print(f"{args.gif}: game {median}, score {scores[median]:.0f}")


if __name__ == "__main__":
    main()

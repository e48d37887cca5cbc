"""
Steps of Atari games: SB3's vectorised environments against AtariVecEnv, and ALE's own vector environment, which does less.

``python benchmarks/speed/bench_atari.py``. Random actions, in turns, agent steps (4 frames) of all environments per second.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1")
import ale_py
import gymnasium as gym
import numpy as np
from machine import describe, machine
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecTransposeImage
from turns import spread

from sb3_rainbow.envs import AtariVecEnv

HERE = Path(__file__).parent
#: Games whose pixels are compared
GAMES = ("Breakout", "SpaceInvaders", "Pong", "Freeway", "Qbert", "Seaquest", "MsPacman", "Asteroids")

gym.register_envs(ale_py)


def make(vec_env_cls: type[VecEnv], game: str, n_envs: int, **wrapper_kwargs: Any) -> VecEnv:
    """
    :param vec_env_cls: class
    :param game: its name
    :param n_envs: number of games
    :param wrapper_kwargs: of ``AtariWrapper``
    :return: environments whose observations are stacks, channels first
    """
    arguments: dict[str, Any] = {"seed": 0, "wrapper_kwargs": wrapper_kwargs, "vec_env_cls": vec_env_cls}
    if vec_env_cls is AtariVecEnv:
        return make_atari_env(f"{game}NoFrameskip-v4", n_envs, **arguments, vec_env_kwargs={"n_stack": 4})
    return VecTransposeImage(VecFrameStack(make_atari_env(f"{game}NoFrameskip-v4", n_envs, **arguments), 4))


def measure(game: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """
    :param game: its name
    :param rounds: how often each is measured
    :param steps: agent steps of all environments, each time
    :return: steps per second by round, for every contender
    """
    runs: dict[str, tuple[int, Callable[[np.ndarray], Any]]] = {}
    envs = []
    for vec_env_cls, numbers in ((DummyVecEnv, (1, 8)), (SubprocVecEnv, (8,)), (AtariVecEnv, (1, 8, 32))):
        for n in numbers:
            env = make(vec_env_cls, game, n)
            env.reset()
            envs.append(env)
            name = "sb3-rainbow AtariVecEnv" if vec_env_cls is AtariVecEnv else f"SB3 {vec_env_cls.__name__}"
            runs[f"{name}, {n}"] = (n, env.step)
    bare = gym.make_vec(f"ALE/{game}-v5", 8, vectorization_mode="vector_entry_point", num_threads=2)
    bare.reset(seed=0)
    runs["ALE's vector environment alone, 8"] = (8, bare.step)

    rng = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, (n, step) in runs.items():
            actions = rng.integers(envs[0].action_space.n, size=(steps // n, n))
            start = time.perf_counter()
            for action in actions:
                step(action)
            if i:  # the first round warms up
                speeds[name].append(len(actions) * n / (time.perf_counter() - start))
    for env in (*envs, bare):
        env.close()
    return speeds


def compare(game: str, steps: int) -> dict[str, float]:
    """
    :param game: its name
    :param steps: of each of two environments
    :return: how the newest frames of SB3 and AtariVecEnv differ after the same actions, without no-ops at the start
    """
    theirs, ours = (make(vec_env_cls, game, 2, noop_max=0) for vec_env_cls in (DummyVecEnv, AtariVecEnv))
    theirs.reset()
    ours.reset()
    rng = np.random.default_rng(0)
    share, most, mismatches = 0.0, 0, 0
    for _ in range(steps):
        actions = rng.integers(theirs.action_space.n, size=2)
        (obs, rewards, dones, _), (our_obs, our_rewards, our_dones, _) = theirs.step(actions), ours.step(actions)
        differences = np.abs(obs[:, -1].astype(int) - our_obs[:, -1])
        share += float((differences > 0).mean()) / steps
        most = max(most, int(differences.max()))
        mismatches += int((rewards != our_rewards).sum() + (dones != our_dones).sum())
    theirs.close()
    ours.close()
    return {"share": share, "most": most, "mismatches": mismatches}


def report(results: dict[str, Any]) -> str:
    """
    :param results: all of them
    :return: tables in Markdown
    """
    base = np.array(results["speeds"]["SB3 DummyVecEnv, 8"])
    lines = ["| environments | steps/s, median (quartiles) | over SB3's DummyVecEnv, 8 |", "|---|---|---|"]
    for name, speeds in results["speeds"].items():
        lines.append(f"| {name} | {spread(speeds, ',.0f')} | {spread(speeds / base, '.2f')} |")
    lines += ["", "| game | pixels that differ | by at most, of 255 | rewards and ends that differ |", "|---|---|---|---|"]
    for game, found in results["pixels"].items():
        lines.append(f"| {game} | {found['share']:.4%} | {found['most']} | {found['mismatches']} |")
    return "\n".join([*lines, "", f"{results['game']}. {describe(results['machine'])}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--game", default="Breakout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    results = {
        "machine": machine(),
        "game": args.game,
        "speeds": measure(args.game, args.rounds, args.steps),
        "pixels": {game: compare(game, 1000) for game in GAMES},
    }
    args.out.mkdir(exist_ok=True)
    (args.out / "atari.json").write_text(json.dumps(results))
    (args.out / "atari.md").write_text(report(results))
    print(report(results))


if __name__ == "__main__":
    main()

"""
Draw the learning curve of a run of RL Zoo, and film its agent: ``python examples/show_run.py logs/rainbow --env CartPole-v1``.

Both pictures are put into the run's folder; where, is printed at the end.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import gymnasium as gym
import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
from rl_zoo3.utils import get_model_path
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.results_plotter import ts2xy, window_func
from stable_baselines3.common.vec_env import VecEnv

from sb3_rainbow.sweep.evaluation import load_run

WINDOW = 20  # episodes


def draw_curve(run: Path, env_id: str) -> Path:
    """Return of every episode over the steps, as Monitor wrote it, and the mean over the last ones."""
    steps, returns = ts2xy(load_results(str(run)), "timesteps")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, returns, ".", markersize=3, alpha=0.4, label="each episode")
    if len(returns) > WINDOW:
        axes.plot(*window_func(steps, returns, WINDOW, np.mean), linewidth=2, label=f"mean of the last {WINDOW}")
    axes.set(
        xlabel="steps below the wrappers (Atari: frames)",
        ylabel="return (rewards not clipped)",
        title=f"RainbowDQN on {env_id}",
        xlim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    path = run / "learning_curve.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def film(model: BaseAlgorithm, env: VecEnv, path: Path, n_frames: int) -> float:
    """Write a GIF of one game, or as much of it as fits, and return its score so far."""
    frames, score = [], 0.0
    obs = env.reset()
    for _ in range(n_frames):
        frames.append(env.render())
        actions, _ = model.predict(obs, deterministic=False)
        obs, _, _, infos = env.step(actions)
        if "episode" in infos[0]:
            score = infos[0]["episode"]["r"]
            break
    # Every second picture, half as large if large: a few hundred kilobytes
    shrink = 2 if max(frames[0].shape) > 300 else 1
    imageio.imwrite(path, [frame[::shrink, ::shrink] for frame in frames[::2]], duration=1000 / 15, loop=0)
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folder", type=Path, help="folder of the algorithm in RL Zoo's logs, such as logs/rainbow")
    parser.add_argument("--env", required=True, help="environment")
    parser.add_argument("--frames", type=int, default=600, help="longest film, in agent steps")
    args = parser.parse_args()

    name = args.env.replace("/", "-")
    _, model_path, run = get_model_path(0, str(args.folder.parent), args.folder.name, name)
    model, env = load_run(Path(run), render_mode="rgb_array")
    curve = draw_curve(Path(run), args.env)
    gif = Path(run) / "agent.gif"
    score = film(model, env, gif, args.frames)
    env.close()
    print(
        f"\nmodel           {model_path}\nlearning curve  {curve}\nfilm            {gif}"
        + (f"  (score {score:.0f})" if score else "")
    )


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()

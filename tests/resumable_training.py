"""A training that can be interrupted and resumed, and the hash of all that it learned: run by test_checkpoint.py."""

import hashlib
import json
import sys
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_rainbow import RainbowDQN
from sb3_rainbow.checkpoint import ResumableCheckpointCallback, load

gym.register_envs(ale_py)


def make_env(game: str, n_envs: int) -> VecEnv:
    if game == "breakout":
        return VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", n_envs, seed=3), 4)
    return make_vec_env("CartPole-v1", n_envs, seed=3)


def make_model(game: str, n_envs: int, **settings) -> RainbowDQN:
    settings = {"buffer_size": 300, "learning_starts": 40, "train_freq": 8, "batch_size": 8} | settings
    policy = "CnnPolicy" if game == "breakout" else "MlpPolicy"
    return RainbowDQN(policy, make_env(game, n_envs), target_update_interval=60, seed=1, **settings)


def fingerprint(model: RainbowDQN) -> str:
    """Hash of parameters, optimiser, buffer, priorities and counters."""
    digest = hashlib.sha256()
    for tensor in model.policy.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    for moments in model.policy.optimizer.state_dict()["state"].values():
        for value in moments.values():
            digest.update(value.numpy().tobytes())
    buffer = model.replay_buffer
    for array in (
        buffer.observations,
        buffer.next_observations,
        buffer.actions,
        buffer.rewards,
        buffer.dones,
        buffer.timeouts,
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    if hasattr(buffer, "_priorities"):
        digest.update(np.ascontiguousarray(buffer._priorities.leaves).tobytes())
    digest.update(json.dumps([model.num_timesteps, model._n_updates, model.exploration_rate]).encode())
    return digest.hexdigest()


def halves(mode: str, folder: Path, steps: int, game: str, n_envs: int) -> str:
    """Train the whole, or half of it and save, or load and train the other half."""
    folder = folder / f"{game}-{n_envs}"
    if mode == "second half":
        model = load(folder, make_env(game, n_envs))
        return fingerprint(model.learn(steps - model.num_timesteps, reset_num_timesteps=False))
    model = make_model(game, n_envs)
    if mode == "whole":
        return fingerprint(model.learn(steps))
    # Stops where a kill would, and has saved between the two rollouts before
    half = ResumableCheckpointCallback(steps // 2, folder)
    half._on_step = lambda: not half._saved_at  # type: ignore[method-assign]
    return fingerprint(model.learn(steps, callback=half))


def all_halves(mode: str, folder: Path, steps: int, *games: str) -> list[str]:
    """:param games: such as ``cartpole-4``: the game, and how many environments"""
    pairs = [game.split("-") for game in games]
    return [halves(mode, folder, steps, game, int(n_envs)) for game, n_envs in pairs]


def main(mode: str, folder: str, steps: str, *games: str) -> None:
    """:param games: see ``all_halves``"""
    th.set_num_threads(1)
    if mode == "resume":  # as often as it is killed
        model = make_model("cartpole", 1)
        model.learn(int(steps), callback=ResumableCheckpointCallback(40, folder, resume=True))
        print(fingerprint(model))
    else:
        print(*all_halves(mode, Path(folder), int(steps), *games))


if __name__ == "__main__":
    main(*sys.argv[1:])

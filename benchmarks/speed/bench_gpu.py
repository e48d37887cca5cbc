"""
What a GPU makes of it: updates per second with the replay on it, and steps per second of 64 games beside it.

``python benchmarks/speed/bench_gpu.py``; ``--device cpu --rounds 1 --steps 640`` tries the script where there is no GPU.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from bench_update import make, updates
from machine import machine
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env

from sb3_rainbow import RainbowDQN
from sb3_rainbow.envs import AtariVecEnv

HERE = Path(__file__).parent
GAME = "BreakoutNoFrameskip-v4"
VARIANTS: dict[str, dict[str, Any]] = {
    "sb3-rainbow": {},
    "sb3-rainbow, bf16": {"amp": "bf16"},
    "sb3-rainbow, compiled": {"compile": True},
    "sb3-rainbow, bf16, compiled": {"amp": "bf16", "compile": True},
    "sb3-rainbow, graph": {"cuda_graph": True},
    "sb3-rainbow, bf16, graph": {"amp": "bf16", "cuda_graph": True},
    "sb3-rainbow, six parts, bf16, graph": {"amp": "bf16", "cuda_graph": True, "n_atoms": 51},
}


def training(device: str, n_envs: int, batch_size: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """
    :param device: of networks and replay
    :param n_envs: games, with one update for a step of them all
    :param batch_size: of an update
    :param steps: agent steps of a round
    :param rounds: how often each variant is measured
    :return: agent steps per second by round
    """
    models: dict[str, Any] = {}
    settings = {"buffer_size": 200_000, "learning_starts": 10 * n_envs, "train_freq": 1, "batch_size": batch_size, "seed": 0}
    for name, variant in {"SB3 DQN": None, **VARIANTS}.items():
        env = make_atari_env(GAME, n_envs, seed=0, vec_env_cls=AtariVecEnv, vec_env_kwargs={"n_stack": 4})
        own = {"buffer_size": 20_000} if variant is None else {"storage_device": device, **variant}
        algorithm = DQN if variant is None else RainbowDQN
        models[name] = algorithm("CnnPolicy", env, device=device, target_update_interval=2000, **(settings | own))
        models[name].learn(20 * n_envs)
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model.learn(steps, reset_num_timesteps=False, log_interval=None)
            speeds[name].append(steps / (time.perf_counter() - start))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=64_000)
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    if args.device == "cuda" and not th.cuda.is_available():
        print("no GPU here: nothing was measured")
        return

    models = {"SB3 DQN": make(DQN, device=args.device)}
    for name, variant in VARIANTS.items():
        models[name] = make(RainbowDQN, device=args.device, storage_device=args.device, **variant)
    results: dict[str, Any] = {
        "machine": machine() | {"device": th.cuda.get_device_name() if args.device == "cuda" else args.device},
        "updates": {name: [] for name in models},
        "steps": training(args.device, args.n_envs, 256, args.steps, args.rounds),
    }
    for i in range(args.rounds + 1):
        for name, model in models.items():
            milliseconds = updates(model, 200 if args.device == "cuda" else 2)["ms"]
            if i:  # the first round warms up
                results["updates"][name].append(milliseconds)
    print(f"Updates of 32; steps of {args.n_envs} games, with an update of 256 for {args.n_envs} steps")
    base: dict[str, np.ndarray] = {}
    for name in models:
        per_second = {"updates": 1e3 / np.array(results["updates"][name]), "steps": np.array(results["steps"][name])}
        base = base or per_second  # SB3's DQN, the first
        parts = (f"{np.median(per_second[k]):.0f} {k}/s, {np.median(per_second[k] / base[k]):.2f} x SB3 DQN's" for k in base)
        print(f"{name}: {'; '.join(parts)}")
    if args.device == "cuda":
        args.out.mkdir(exist_ok=True)
        (args.out / "gpu.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()

"""
How long a checkpoint of a million Atari transitions stops training: ``python benchmarks/speed/bench_checkpoint.py``.

Saves a full replay buffer, adds a tenth of it, saves again, and loads. The ratio is that of the pause, in which what is new is
copied, to the time of the full write.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1")
import gymnasium as gym
from bench_replay import SHAPE, Ours, Stream, fill
from gymnasium import spaces
from machine import machine

from sb3_rainbow import RainbowDQN
from sb3_rainbow.checkpoint import load, save
from sb3_rainbow.checkpoint.callback import MOST_COPIED
from sb3_rainbow.checkpoint.state import take_snapshot


class Frames(gym.Env):
    """As much of an environment as a model needs to be made."""

    observation_space = spaces.Box(0, 255, SHAPE, "uint8")
    action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--capacity", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()

    model = RainbowDQN("CnnPolicy", Frames(), buffer_size=args.capacity, seed=0)
    contender, stream = Ours(1), Stream(1)
    contender.buffer = model.replay_buffer
    fill(contender, stream, args.capacity + args.capacity // 20)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    seconds = {}

    def timed(name: str) -> None:
        os.sync()
        start = time.perf_counter()
        save(model, folder)
        seconds[name] = round(time.perf_counter() - start, 2)

    try:
        timed("full")
        fill(contender, stream, args.capacity // 10)
        model.num_timesteps += args.capacity // 10
        # What ResumableCheckpointCallback does before training goes on
        start = time.perf_counter()
        copied = take_snapshot(model).copied(folder, MOST_COPIED)
        seconds["pause, a tenth later"] = round(time.perf_counter() - start, 2)
        assert copied is not None
        del copied
        timed("a tenth later")
        start = time.perf_counter()
        load(folder)
        seconds["load"] = round(time.perf_counter() - start, 2)
    finally:
        shutil.rmtree(folder)
    ratio = seconds["pause, a tenth later"] / seconds["full"]
    result = {"machine": machine(), "capacity": args.capacity, "seconds": seconds, "ratio": round(ratio, 3)}
    args.out.mkdir(exist_ok=True)
    (args.out / "checkpoint.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

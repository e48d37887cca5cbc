"""
What a sweep costs beside plain runs: ``python benchmarks/speed/bench_sweep.py``.

Two trainings of CartPole side by side, on two cores, each evaluated over some games: by hand (RL Zoo's ``train``, then
``evaluate.py``), by the sweep in processes, and by the sweep in a Ray of this machine (if it is installed), in turns. The
sweep also writes checkpoints and curves, and a Ray is started and ended; all that counts. The ratio is of the wall times.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from machine import describe, machine
from tqdm import tqdm
from turns import spread

SEEDS = (0, 1)
GAMES = 5
HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def by_hand(folder: Path, steps: int) -> None:
    """
    :param folder: for all files
    :param steps: agent steps of each run
    """
    evaluate = HERE.parent / "learning" / "evaluate.py"
    train = f"-m sb3_rainbow.zoo train --algo rainbow --env CartPole-v1 --eval-freq -1 --num-threads 1 -n {steps}"
    processes = []
    for seed in SEEDS:
        logs = folder / str(seed)
        first = f"{sys.executable} {train} --seed {seed} -f {logs}"
        second = f"{sys.executable} {evaluate} {logs}/rainbow/CartPole-v1_1 --games {GAMES} --csv {logs}/scores.csv"
        command = f"{first} && {second}"
        processes.append(subprocess.Popen(command, shell=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT))
    for process in processes:
        if process.wait():
            raise RuntimeError(f"{process.args} failed")


def by_sweep(folder: Path, steps: int, engine: str) -> None:
    """
    :param folder: for all files
    :param steps: agent steps of each run
    :param engine: ``"ray"`` or ``"processes"``
    """
    suite = {
        "envs": {"CartPole-v1": steps},
        "algorithms": {"rainbow": {"algo": "rainbow"}},
        "seeds": list(SEEDS),
        "evaluation": {"n_games": GAMES},
    }
    (folder / "suite.yml").write_text(yaml.safe_dump(suite))
    command = [sys.executable, "-m", "sb3_rainbow.sweep", str(folder / "suite.yml"), "--out", str(folder)]
    subprocess.run([*command, "--engine", engine], check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()

    ways = {"by hand": by_hand, "sweep, processes": lambda folder, steps: by_sweep(folder, steps, "processes")}
    if importlib.util.find_spec("ray"):
        ways["sweep, Ray"] = lambda folder, steps: by_sweep(folder, steps, "ray")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(args.rounds), desc="rounds"):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                way(Path(folder), args.steps)
                seconds[name].append(round(time.perf_counter() - start, 2))
    about = f"2 runs of CartPole side by side, {args.steps:,} steps each; {args.rounds} rounds in turns"
    lines = [f"{about}, median (quartiles)", ""]
    lines += ["| | seconds | to by hand |", "|---|---|---|"]
    for name, times in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(times, seconds["by hand"], strict=True)]
        lines.append(f"| {name} | {spread(times, '.1f')} | {spread(ratios, '.3f')} |")
    about_machine = machine()
    report = "\n".join([*lines, "", describe(about_machine)])
    print(report)
    args.out.mkdir(exist_ok=True)
    (args.out / "sweep.json").write_text(json.dumps({"machine": about_machine, "steps": args.steps, "seconds": seconds}))
    (args.out / "sweep.md").write_text(report)


if __name__ == "__main__":
    main()

"""
Agent steps per second of whole training loops, learning active: ours against SB3's DQN and every Rainbow at hand.

``python benchmarks/speed/bench_training.py``. Every loop has a process of its own, and they take turns.
"""

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from bench_replay import machine
from tqdm import tqdm
from training_peers import CONTENDERS, PARTS, WARM_UP

HERE = Path(__file__).parent
#: Numerator, denominator
RATIOS = (
    ("sb3-rainbow", "tianshou Rainbow"),
    ("sb3-rainbow", "PFRL Rainbow"),
    ("sb3-rainbow", "the notebook's loop"),
    ("sb3-rainbow", "SB3 DQN"),
    ("sb3-rainbow", "sb3-contrib QR-DQN"),
    ("sb3-rainbow, bf16", "SB3 DQN"),
    ("sb3-rainbow, 8 native", "SB3 DQN, 8"),
    ("sb3-rainbow, 8 native, bf16", "SB3 DQN, 8"),
    ("sb3-rainbow, 8 native, compiled", "SB3 DQN, 8"),
    ("sb3-rainbow, 8 native, bf16, compiled", "SB3 DQN, 8"),
)
SMOKE = ("sb3-rainbow", "SB3 DQN", "the notebook's loop")


def serve(name: str, threads: int) -> None:
    """
    Train one contender as told: every line of the input is a number of steps, every line of the output the seconds they took.

    :param name: of the contender
    :param threads: torch's
    """
    th.set_num_threads(threads)
    contender = CONTENDERS[name]()
    contender.advance(WARM_UP + 200)
    contender.seconds = dict.fromkeys(PARTS, 0.0)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        contender.advance(int(line))
        print(json.dumps({"seconds": time.perf_counter() - start, "split": contender.seconds}), flush=True)
        contender.seconds = dict.fromkeys(PARTS, 0.0)


class Process:
    """
    A contender in a process of its own.

    :param name: of the contender
    :param threads: torch's
    """

    def __init__(self, name: str, threads: int) -> None:
        command = [sys.executable, str(Path(__file__)), "--serve", name, "--threads", str(threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    def wait(self) -> str:
        """:return: empty, or why it did not start"""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "ready\n":
                return ""
        return self._process.communicate()[1].strip().splitlines()[-1]

    def advance(self, steps: int) -> dict[str, Any]:
        """
        :param steps: agent steps of all environments
        :return: seconds, and their split
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"seconds"'):
                return json.loads(line)
        raise RuntimeError(self._process.communicate()[1])

    def end(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.communicate()


def measure(names: list[str], rounds: int, steps: int, threads: int) -> tuple[dict[str, Any], dict[str, str]]:
    """
    :param names: contenders
    :param rounds: how often each is measured
    :param steps: agent steps, each time
    :param threads: torch's
    :return: for each that started, steps per second by round and shares of its time; for the others, why not
    """
    processes, failed = {}, {}
    for name in tqdm(names, desc="warm up", leave=False):
        process = Process(name, threads)
        if reason := process.wait():
            failed[name] = reason
        else:
            processes[name] = process
    results: dict[str, Any] = {name: {"speed": [], "split": []} for name in processes}
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name, process in processes.items():
            answer = process.advance(steps)
            results[name]["speed"].append(steps / answer["seconds"])
            results[name]["split"].append({part: answer["split"][part] / answer["seconds"] for part in PARTS})
    for process in processes.values():
        process.end()
    return results, failed


def report(results: dict[str, Any]) -> str:
    """
    :param results: all of them
    :return: tables in Markdown
    """
    lines = [f"| loop | steps/s, median (quartiles) | {' | '.join(PARTS)} |", "|---" * (2 + len(PARTS)) + "|"]
    loops = results["loops"]
    for name, loop in loops.items():
        low, median, high = np.quantile(loop["speed"], (0.25, 0.5, 0.75))
        shares = [float(np.median([split[part] for split in loop["split"]])) for part in PARTS]
        cells = [f"{share:.0%}" if share else "-" for share in shares]
        lines.append(f"| {name} | {median:.1f} ({low:.1f}-{high:.1f}) | {' | '.join(cells)} |")
    lines += ["", "| ratio, by round | median (quartiles) |", "|---|---|"]
    for over, under in RATIOS:
        if over in loops and under in loops:
            ratios = np.array(loops[over]["speed"]) / np.array(loops[under]["speed"])
            low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            lines.append(f"| {over} / {under} | {median:.2f} ({low:.2f}-{high:.2f}) |")
    lines += [f"\nnot measured: {name}: {reason}" for name, reason in results["failed"].items()]
    about = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines += ["", f"{about['cpu']} ({about['torch_cpu_capability']}), torch threads: {results['threads']}. {versions}."]
    return "\n".join([*lines, "", f"Command: `{about['command']}`"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--smoke", action="store_true", help="a few contenders, for a short time, and no files")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.threads)
        return
    names, rounds = (list(SMOKE), 5) if args.smoke else (args.contenders, args.rounds)
    loops, failed = measure(names, rounds, args.steps, args.threads)
    about = machine()
    about["versions"] |= {
        name: importlib.metadata.version(name) for name in ("stable-baselines3", "sb3-contrib", "ale-py") if name not in failed
    }
    results = {"machine": about, "threads": args.threads, "loops": loops, "failed": failed}
    print(report(results))
    if not args.smoke:
        args.out.mkdir(exist_ok=True)
        (args.out / f"training-{args.threads}.json").write_text(json.dumps(results))
        (args.out / f"training-{args.threads}.md").write_text(report(results))


if __name__ == "__main__":
    main()

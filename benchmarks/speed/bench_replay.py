"""
Times of the replay buffer against its peers, and memory: ``python benchmarks/speed/bench_replay.py``.

Each peer is measured in a process of its own, in turns with ours, on one thread: rounds of ours and the peer's follow each
other, so whatever else the machine does meets both, and a ratio is that of one round. The table and the plot are of medians.
Transitions are random frames, stacked by four, in episodes of 400 steps; buffers are full before anything is timed.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
import numpy as np
import psutil
import torch as th
from machine import describe, machine, versions
from replay_peers import ACTIONS, PEERS, SHAPE, Contender, Ours

HERE = Path(__file__).parent
EPISODE = 400
BATCH_SIZES = (32, 256, 512)


class Stream:
    """
    Transitions of environments that show random frames.

    :param n_envs: number of environments; their episodes end one after the other
    """

    def __init__(self, n_envs: int) -> None:
        rng = np.random.default_rng(0)
        self.rng, self.n_envs, self.time = rng, n_envs, 0
        self.pool = rng.integers(0, 255, (1009, *SHAPE[1:]), dtype=np.uint8)
        self.ages = np.arange(n_envs) * (EPISODE // n_envs)
        self.stacks = np.zeros((n_envs, *SHAPE), np.uint8)

    def take(self, n_steps: int) -> list[tuple[np.ndarray, ...]]:
        """
        :param n_steps: how many
        :return: arguments of ``Contender.add``
        """
        steps = []
        for _ in range(n_steps):
            self.time += 1
            new = self.pool[(self.time + np.arange(self.n_envs) * 101) % len(self.pool)]
            following = np.concatenate((self.stacks[:, 1:], new[:, None]), axis=1)
            self.ages += 1
            done = self.ages >= EPISODE
            self.ages[done] = 0
            action = self.rng.integers(ACTIONS.n, size=self.n_envs)
            reward = self.rng.random(self.n_envs, dtype=np.float32)
            steps.append((self.stacks, following, action, reward, done))
            self.stacks = following.copy()
            self.stacks[done, :-1] = 0  # VecFrameStack clears its stack
        return steps


def fill(contender: Contender, stream: Stream, n_steps: int) -> None:
    """
    :param contender: what to fill
    :param stream: with what
    :param n_steps: vector steps
    """
    part = 500 // contender.n_envs
    for start in range(0, n_steps, part):
        for step in stream.take(min(part, n_steps - start)):
            contender.add(*step)


def measure(contenders: dict[str, Contender], streams: dict[str, Stream], rounds: int) -> dict[str, dict[str, list[float]]]:
    """
    :param contenders: full buffers, by name
    :param streams: theirs
    :param rounds: how often each is measured
    :return: for each, microseconds per call of each operation, by round; ``add`` per transition
    """
    rng = np.random.default_rng(1)
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}

    def record(name: str, operation: str, duration: float, calls: int) -> None:
        seconds[name].setdefault(operation, []).append(duration / calls * 1e6)

    for _ in range(rounds):
        for name, contender in contenders.items():
            steps = streams[name].take(200 // contender.n_envs)
            start = time.perf_counter()
            for step in steps:
                contender.add(*step)
            record(name, "add", time.perf_counter() - start, len(steps) * contender.n_envs)
        for batch_size in BATCH_SIZES:
            calls = max(2, 1024 // batch_size)
            for name, contender in contenders.items():
                sampling = updating = 0.0
                for _ in range(calls):
                    priorities = rng.random(batch_size, dtype=np.float32) + 0.01
                    start = time.perf_counter()
                    contender.sample(batch_size)
                    middle = time.perf_counter()
                    contender.update(priorities)
                    sampling += middle - start
                    updating += time.perf_counter() - middle
                record(name, f"sample {batch_size}", sampling, calls)
                record(name, f"update {batch_size}", updating, calls)
    return seconds


def run_pair(peer: str, capacity: int, n_envs: int, rounds: int) -> dict[str, Any]:
    """
    :param peer: its name, or "" for ours alone
    :param capacity: transitions of each buffer
    :param n_envs: number of environments
    :param rounds: of measurement
    :return: all numbers of this process
    """
    th.set_num_threads(1)
    makers: dict[str, type[Contender]] = {"ours": Ours} | ({peer: PEERS[peer]} if peer else {})
    contenders, streams, grown = {}, {}, {}
    process = psutil.Process()
    for name, make in makers.items():
        # A small one first: libraries are paid for before memory is counted
        small = make(64 * n_envs, n_envs)
        fill(small, Stream(n_envs), 100)
        small.sample(32)
        small.update(np.ones(32, np.float32))
        streams[name] = Stream(n_envs)
        before = process.memory_info().rss
        contenders[name] = make(capacity, n_envs)
        fill(contenders[name], streams[name], capacity // n_envs)
        gc.collect()
        grown[name] = (process.memory_info().rss - before) / capacity
    measure(contenders, streams, 2)
    result = {
        "versions": versions(),
        "peer": peer,
        "capacity": capacity,
        "n_envs": n_envs,
        "bytes_per_transition": {name: round(value) for name, value in grown.items()},
        "resident_gb": round(psutil.Process().memory_info().rss / 1e9, 3),
        "us": measure(contenders, streams, rounds),
        "note": makers[peer].note if peer else "",
    }
    result["own_count"] = contenders["ours"].buffer.nbytes / capacity  # type: ignore[attr-defined]
    return result


def ratio(result: dict[str, Any], operation: str) -> tuple[float, float, float]:
    """
    :param result: of one pair
    :param operation: such as ``"sample 32"``
    :return: ours over the peer's: median and quartiles over the rounds
    """
    ours, peer = (np.array(result["us"][name][operation]) for name in ("ours", result["peer"]))
    low, median, high = np.quantile(ours / peer, (0.25, 0.5, 0.75))
    return float(median), float(low), float(high)


def report(results: dict[str, Any]) -> str:
    """
    :param results: all pairs
    :return: tables in Markdown
    """
    operations = ["add", *(f"{what} {size}" for what in ("sample", "update") for size in BATCH_SIZES)]
    lines = ["Microseconds (ours / the peer's, medians of the same rounds) and in brackets the ratio with its quartiles.", ""]
    for capacity in sorted({pair["capacity"] for pair in results["pairs"] if pair["peer"]}):
        lines += [f"### Capacity {capacity:,}", "", f"| peer | n_envs | bytes | {' | '.join(operations)} |"]
        lines += ["|---" * (3 + len(operations)) + "|"]
        for pair in results["pairs"]:
            if pair["capacity"] != capacity or not pair["peer"]:
                continue
            cells = []
            for operation in operations:
                ours, peer = (np.median(pair["us"][name][operation]) for name in ("ours", pair["peer"]))
                if operation.startswith("update") and pair["peer"].startswith("SB3 "):  # it has no priorities
                    cells.append(f"{ours:.0f} / -")
                    continue
                median, low, high = ratio(pair, operation)
                cells.append(f"{ours:.0f} / {peer:.0f} ({median:.2f}, {low:.2f}-{high:.2f})")
            used = pair["bytes_per_transition"]
            name = f"{pair['peer']} ({pair['note']})"
            lines.append(f"| {name} | {pair['n_envs']} | {used['ours']} / {used[pair['peer']]} | {' | '.join(cells)} |")
        lines.append("")
    alone = {pair["capacity"]: pair for pair in results["pairs"] if not pair["peer"]}
    for capacity, pair in sorted(alone.items()):
        lines.append(
            f"Ours alone at {capacity:,}: {pair['own_count']:.0f} bytes per transition by its own count, process "
            f"{pair['resident_gb']:.2f} GB resident, sample and update of 32 {_sample_and_update(pair):.0f} us."
        )
    versions: dict[str, str] = {}  # measured by several Pythons, perhaps
    for pair in results["pairs"]:
        versions |= pair["versions"]
    return "\n".join([*lines, "", describe(results["machine"] | {"versions": versions})])


def _sample_and_update(pair: dict[str, Any]) -> float:
    us = pair["us"]["ours"]
    return float(np.median(np.array(us["sample 32"]) + us["update 32"]))


def draw(results: dict[str, Any], path: Path) -> None:
    """
    :param results: all pairs
    :param path: PNG to write
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    pairs = [pair for pair in results["pairs"] if pair["peer"] and pair["n_envs"] == 1]
    capacity = min(pair["capacity"] for pair in pairs)
    pairs = [pair for pair in pairs if pair["capacity"] == capacity]
    figure, (times, memory) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = [pair["peer"] for pair in pairs]
    for i, batch_size in enumerate(BATCH_SIZES):
        speedups = [1 / ratio(pair, f"sample {batch_size}")[0] for pair in pairs]
        times.barh(np.arange(len(names)) + (i - 1) * 0.27, speedups, 0.25, label=f"batch {batch_size}")
    times.axvline(1, color="black", linewidth=1)
    times.set(yticks=range(len(names)), yticklabels=names, xscale="log", xlabel="its time to sample / ours (1: as fast)")
    times.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20]))
    times.xaxis.set_major_formatter("{x:g}")
    times.xaxis.set_minor_locator(NullLocator())
    times.invert_yaxis()
    times.legend()
    memory.barh(
        ["sb3-rainbow", *names],
        [pairs[0]["bytes_per_transition"]["ours"], *(pair["bytes_per_transition"][pair["peer"]] for pair in pairs)],
        color=["tab:green", *["tab:gray"] * len(names)],
    )
    memory.invert_yaxis()
    memory.set(xlabel="bytes per transition, growth of the process")
    figure.suptitle(f"Replay of {capacity:,} Atari transitions, one thread")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--capacity", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=[*PEERS, []])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--add", action="store_true", help="keep the other results that are there")
    parser.add_argument("--pair", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pair:
        print(json.dumps(run_pair(**json.loads(args.pair))))
        return

    results: dict[str, Any] = {"machine": machine(), "pairs": []}
    if args.add:
        results = json.loads((args.out / "replay.json").read_text())
        results["machine"]["command"] += f"; {machine()['command']}"
    measured = {pair["capacity"] for pair in results["pairs"] if not pair["peer"]}
    jobs: list[dict[str, Any]] = []
    for capacity in args.capacity:
        fits = [
            peer
            for peer in args.peers
            if (PEERS[peer].bytes_per_transition + 7250) * capacity < 0.9 * psutil.virtual_memory().available
        ]
        print("no room here at", capacity, "for", sorted(set(args.peers) - set(fits)), file=sys.stderr)
        jobs += [{"peer": peer, "capacity": capacity, "n_envs": 1} for peer in ["", *fits] if peer or capacity not in measured]
        jobs += [{"peer": peer, "capacity": capacity, "n_envs": 8} for peer in fits if peer == "SB3 ReplayBuffer"]
    for job in jobs:
        print(job, file=sys.stderr)
        command = [sys.executable, __file__, "--pair", json.dumps(job | {"rounds": args.rounds})]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        pair = json.loads(output.splitlines()[-1])
        same = [old for old in results["pairs"] if all(old[name] == pair[name] for name in ("peer", "capacity", "n_envs"))]
        results["pairs"] = [old for old in results["pairs"] if old not in same] + [pair]
        args.out.mkdir(exist_ok=True)
        (args.out / "replay.json").write_text(json.dumps(results))
    (args.out / "replay.md").write_text(report(results))
    draw(results, args.out / "replay.png")
    print(report(results))


if __name__ == "__main__":
    main()

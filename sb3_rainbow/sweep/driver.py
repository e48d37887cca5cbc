"""Runs a suite: starts what is not done, shows how far it is, and says at the end what failed."""

import argparse
import importlib.util
import json
import math
import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any

import torch as th

from sb3_rainbow.arguments import check_integer
from sb3_rainbow.sweep.attempt import claim
from sb3_rainbow.sweep.engine import Engine, Processes, Ray
from sb3_rainbow.sweep.search import finished, give_up_trials, prepare
from sb3_rainbow.sweep.suite import Run, check_known, expand, read
from sb3_rainbow.sweep.table import Board, View, results, view


def sweep(runs: list[Run], engine: Engine, jobs: int, shown: View) -> dict[str, str]:
    """
    Start all runs that are not done, and wait for their ends.

    :param runs: all of them
    :param engine: where they run
    :param jobs: how many are started before one has ended
    :param shown: where the user sees it
    :return: errors of those that failed, by their names
    """
    board = Board(runs)
    waiting = deque(run for run in runs if not run.is_done)
    while waiting or board.running:
        while waiting and len(board.running) < jobs:
            engine.start(waiting[0])
            board.running.append(waiting.popleft())
        for run, error in engine.ended(timeout=1.0):
            board.running.remove(run)
            if error:
                board.failed[run.name] = error
                shown.say(f"{run.name}: failed, {error}")
            else:
                board.n_done += 1
                shown.say(f"{run.name}: {_summary(run)}")
        shown.update(board)
    return board.failed


def _summary(run: Run) -> str:
    """What a run that is done has reached."""
    try:
        return str(json.loads((run.folder / "manifest.json").read_text())["summary"])
    except FileNotFoundError:  # a network file system shows it late
        return "done"


def _cores() -> int:
    """Those that this process may use: of a job in a cluster, not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_cluster(args: argparse.Namespace) -> bool:
    """Whose nodes may come later; else runs are on this machine alone."""
    return args.engine != "processes" and bool(args.address or "RAY_ADDRESS" in os.environ)


def _jobs(suite: dict[str, Any]) -> int:
    """How many runs this machine has room for."""
    rooms = [_cores() / suite["num_cpus"]]
    if suite["num_gpus"] > 0:
        rooms.append(th.cuda.device_count() / suite["num_gpus"])
    return max(1, int(min(rooms)))


def _engine(args: argparse.Namespace, num_cpus: int, num_gpus: float) -> Engine:
    """Ray where it brings something: a cluster, or shares of GPUs. On one machine its daemons only cost some percent."""
    if args.engine == "processes":
        return Processes()
    is_there = importlib.util.find_spec("ray") is not None
    if args.engine == "ray" or _on_cluster(args) or (num_gpus > 0 and is_there):
        return Ray(args.address, num_cpus)
    if not is_there:
        print(
            'Runs are processes of this machine. pip install "sb3-rainbow[ray]" adds clusters, several GPUs, '
            "and runs that go on where a whole machine is lost",
            flush=True,
        )
    return Processes()


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line
    :return: exit status: 0 if all runs are done, 1 if some failed, 130 if it was interrupted
    :raises ValueError: if the suite or an argument is wrong; nothing has been started then
    """
    parser = argparse.ArgumentParser(prog="python -m sb3_rainbow.sweep", description=__doc__)
    parser.add_argument("suites", type=Path, help="YAML file: a suite, or several by their names")
    parser.add_argument("--suite", help="which of several")
    parser.add_argument("--address", help="of a Ray cluster; auto: the one that this machine is part of")
    parser.add_argument("--out", type=Path, default=Path("results"), help="all machines must see this folder")
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    parser.add_argument("--jobs", type=int, help="runs side by side (as many as there is room for)")
    engines = "where runs run: Ray for clusters and GPUs, else processes of this machine"
    parser.add_argument("--engine", choices=["ray", "processes"], help=engines)
    args = parser.parse_args(argv)

    name, suite = read(args.suites, args.suite)
    if args.jobs is not None:
        check_integer("jobs", args.jobs, 1)
    beside = str(args.suites.resolve().parent)
    check_known(name, suite, beside)
    runs = [run for run in expand(name, suite, args.out.resolve(), beside) if args.only in run.name]
    if not runs:
        raise ValueError(f"only={args.only!r}: no run of {name} is called so")
    # Nothing to do: no need for Ray, nor for GPUs
    all_done = all(run.is_done for run in runs)
    if not all_done and not _on_cluster(args) and suite["num_gpus"] > (most := th.cuda.device_count()):
        raise ValueError(f"{name}: num_gpus={suite['num_gpus']}: must be at most {most}, the GPUs of this machine")

    workers = [run for run in runs if run.search and not run.is_done]
    for run in runs:
        begun_before = run in workers and (run.folder / "run.json").exists()  # else its database may not be there yet
        claim(run, has_trials=begun_before and finished(run)[0] > 0)
    for storage in {run.search["storage"] for run in workers}:
        prepare(storage)
    for run in {run.search["study_name"]: run for run in workers}.values():  # one of each study
        give_up_trials(run, all_workers=True)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    # Ray's are whole. More than there are, if that is what was asked for: it would wait for them for ever
    num_cpus = max(_cores(), math.ceil((args.jobs or 1) * suite["num_cpus"]))
    engine = Processes() if all_done else _engine(args, num_cpus, suite["num_gpus"])
    # A cluster knows itself how many it has room for
    jobs = args.jobs or (len(runs) if isinstance(engine, Ray) else _jobs(suite))
    # A scheduler's way to say that time is up. Ray has set its own
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with view() as shown:
            failed = sweep(runs, engine, jobs, shown)
    except KeyboardInterrupt:
        print("\nInterrupted: the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        engine.close()
        signal.signal(signal.SIGTERM, before)
    print(results(runs))
    if failed:
        print(f"\n{len(failed)} failed:", *(f"{run}: {error}" for run, error in failed.items()), sep="\n", file=sys.stderr)
    return int(bool(failed))

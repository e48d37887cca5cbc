"""
Train what a suite lists, through RL Zoo, several runs side by side: ``python benchmarks/learning/run.py classic``.

Every run has a folder, ``<out>/<suite>/<label>-<env>-<seed>``: RL Zoo's own files, ``curve.csv`` (one line per episode),
``scores.csv`` (the evaluation) and at last ``manifest.json``. Runs that have a manifest are skipped, so an interrupted suite
goes on when it is started again; with ``checkpoint_freq``, a run of Rainbow goes on where it was.
"""

import argparse
import concurrent.futures
import csv
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

HERE = Path(__file__).parent
PACKAGES = ("sb3-rainbow", "stable-baselines3", "sb3-contrib", "rl_zoo3", "torch", "numpy", "gymnasium", "ale-py")


class Run(NamedTuple):
    """One training."""

    folder: Path
    env: str
    steps: int
    label: str
    #: ``algo`` and perhaps ``config`` and ``hyperparams``
    settings: dict[str, Any]
    seed: int
    evaluation: dict[str, Any]
    #: Modules that register environments
    gym_packages: list[str]
    #: Agent steps between checkpoints of Rainbow; 0 for none
    checkpoint_freq: int


def expand(name: str, suite: dict[str, Any], out: Path) -> list[Run]:
    """
    :param name: name of the suite
    :param suite: an entry of ``suites.yml``
    :param out: folder of all results
    :return: its runs, all environments and algorithms of one seed first
    """
    return [
        Run(
            out / name / f"{label}-{env.replace('/', '-')}-{seed}",
            env,
            steps,
            label,
            settings,
            seed,
            suite["evaluation"],
            suite.get("gym_packages", []),
            suite.get("checkpoint_freq", 0),
        )
        for seed in suite["seeds"]
        for env, steps in suite["envs"].items()
        for label, settings in suite["algorithms"].items()
    ]


def train(run: Run) -> None:
    """
    Train, evaluate, and write the manifest.

    :param run: what to do; nothing if it has been done
    """
    if (run.folder / "manifest.json").exists():
        return
    from evaluate import evaluate, load_run, summary

    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", run.settings["algo"], "--env", run.env]
    command += ["-n", str(run.steps), "--seed", str(run.seed), "-f", str(run.folder / "zoo"), "--eval-freq", "-1"]
    command += ["--num-threads", "1"]
    if run.gym_packages:
        command += ["--gym-packages", *run.gym_packages]
    if "config" in run.settings:
        command += ["-conf", str(HERE.parents[1] / run.settings["config"])]
    checkpoints = run.folder / "checkpoints"
    callbacks: list[dict[str, Any]] = [{"episodes.EpisodeCurve": {"path": str(run.folder / "curve.csv")}}]
    if run.checkpoint_freq and run.settings["algo"] == "rainbow":
        resumable = {"save_freq": run.checkpoint_freq, "folder": str(checkpoints), "resume": True}
        callbacks.insert(0, {"sb3_rainbow.checkpoint.ResumableCheckpointCallback": resumable})
    hyperparams = run.settings.get("hyperparams", {}) | {"callback": callbacks}
    command += ["-params", *(f"{key}:{value!r}" for key, value in hyperparams.items())]
    python_path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    start = time.perf_counter()
    with (run.folder / "log.txt").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": python_path})
    seconds = time.perf_counter() - start

    zoo = max((run.folder / "zoo" / run.settings["algo"]).rglob("args.yml"), key=lambda args: args.stat().st_mtime).parents[1]
    model, env = load_run(zoo, seed=run.seed + 1000)
    scores = evaluate(model, env, **run.evaluation)
    with (run.folder / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("score",), *((score,) for score in scores)])
    manifest = run._asdict() | {
        "folder": run.folder.name,
        "summary": summary(scores),
        "seconds": round(seconds),
        "command": command[1:],
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    (run.folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(checkpoints, ignore_errors=True)


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("suite", help="name in suites.yml")
    parser.add_argument("--suites", type=Path, default=HERE / "suites.yml")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    args = parser.parse_args()

    runs = expand(args.suite, yaml.safe_load(args.suites.read_text())[args.suite], args.out)
    runs = [run for run in runs if args.only in run.folder.name]
    failed = []
    with concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        waiting = {pool.submit(train, run): run for run in runs}
        for future in tqdm(concurrent.futures.as_completed(waiting), total=len(runs), unit="run"):
            run = waiting[future]
            if error := future.exception():
                failed.append(f"{run.folder}: {error}")
            else:
                print(f"{run.folder.name}: {json.loads((run.folder / 'manifest.json').read_text())['summary']}", flush=True)
    print(*failed, sep="\n", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

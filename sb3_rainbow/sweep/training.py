"""Train and evaluate: what an attempt at a training does."""

import csv
import hashlib
import time
from pathlib import Path
from typing import Any

from sb3_rainbow.sweep.attempt import finish, parameters, run_zoo, zoo_arguments
from sb3_rainbow.sweep.evaluation import evaluate, load_run, summary, write_scores
from sb3_rainbow.sweep.suite import Run
from sb3_rainbow.zoo import ALGO


def train(run: Run, attempt: Path) -> None:
    """
    Train, evaluate, and write the manifest.

    :param run: what to do
    :param attempt: folder of the attempt
    """
    theirs = run.settings.get("hyperparams", {}).get("callback", [])
    callbacks: list[Any] = list(theirs) if isinstance(theirs, list) else [theirs]
    if run.checkpoint_freq and run.settings["algo"] == ALGO and "ResumableCheckpointCallback" not in str(callbacks):
        folder = str(attempt / "checkpoints").replace("{", "{{").replace("}", "}}")
        resumable = {"save_freq": run.checkpoint_freq, "folder": folder, "resume": True}
        callbacks.insert(0, {"sb3_rainbow.checkpoint.ResumableCheckpointCallback": resumable})
    curve = {"path": str(attempt / "curve.csv")} | ({"sync_freq": run.checkpoint_freq} if run.checkpoint_freq else {})
    callbacks.append({"sb3_rainbow.sweep.curve.EpisodeCurve": curve})
    arguments = [*zoo_arguments(run, attempt), "--seed", str(run.seed), "--eval-freq", "-1"]
    arguments += parameters(run.settings.get("hyperparams", {}) | {"callback": callbacks})
    start = time.perf_counter()
    run_zoo(arguments)
    seconds = time.perf_counter() - start

    (folder_of_zoo,) = (attempt / "zoo" / run.settings["algo"]).iterdir()
    model, env = load_run(folder_of_zoo, seed=run.seed + 1000)
    scores = evaluate(model, env, **run.evaluation)
    env.close()
    write_scores(scores, attempt / "scores.csv")
    with (attempt / "curve.csv").open() as file:  # its seconds go on where those of an attempt before ended
        seconds = max([seconds, *(float(line["seconds"]) for line in csv.DictReader(file))])
    finish(run, attempt, summary(scores), seconds, arguments, parameters_sha256=_hash(model))


def _hash(model: Any) -> str:
    """Of all parameters: equal where two trainings learned the same, to the last bit."""
    digest = hashlib.sha256()
    for name, tensor in model.policy.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()

"""Train and evaluate: what an attempt at a training does."""

import contextlib
import csv
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sb3_rainbow.checkpoint import ResumableCheckpointCallback
from sb3_rainbow.sweep.attempt import finish, parameters, run_zoo, zoo_arguments
from sb3_rainbow.sweep.curve import EpisodeCurve
from sb3_rainbow.sweep.evaluation import evaluate, load_run, summary, write_scores
from sb3_rainbow.sweep.suite import Run
from sb3_rainbow.zoo import ALGO


def train(run: Run, attempt: Path) -> None:
    """
    Train, evaluate, and write the manifest.

    :param run: what to do
    :param attempt: folder of the attempt
    """
    arguments = [*zoo_arguments(run, attempt), "--seed", str(run.seed), "--eval-freq", "-1"]
    arguments += parameters(run.settings.get("hyperparams", {}))
    start = time.perf_counter()
    with _callbacks(run, attempt):
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


@contextlib.contextmanager
def _callbacks(run: Run, attempt: Path) -> Iterator[None]:
    """
    Have RL Zoo use ours beside those of the settings: checkpoints, in place of theirs, whose folder other runs may have too,
    and the curve.
    """
    from rl_zoo3.exp_manager import ExperimentManager

    create = ExperimentManager.create_callbacks

    def create_with_ours(manager: ExperimentManager) -> None:
        theirs = [callback for callback in manager.callbacks if not isinstance(callback, ResumableCheckpointCallback)]
        curve = EpisodeCurve(str(attempt / "curve.csv"), **({"sync_freq": run.checkpoint_freq} if run.checkpoint_freq else {}))
        manager.callbacks = [*theirs, curve]
        if run.checkpoint_freq and run.settings["algo"] == ALGO:
            folder = str(attempt / "checkpoints").replace("{", "{{").replace("}", "}}")
            manager.callbacks.insert(0, ResumableCheckpointCallback(run.checkpoint_freq, folder, resume=True))
        create(manager)  # type: ignore[no-untyped-call]

    ExperimentManager.create_callbacks = create_with_ours  # type: ignore[method-assign]
    try:
        yield
    finally:
        ExperimentManager.create_callbacks = create  # type: ignore[method-assign]


def _hash(model: Any) -> str:
    """Of all parameters: equal where two trainings learned the same, to the last bit."""
    digest = hashlib.sha256()
    for name, tensor in model.policy.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()

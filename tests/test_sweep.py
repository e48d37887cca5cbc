"""A sweep ends with the same numbers, whatever dies meanwhile; what is wrong with a suite is said before anything starts."""

import contextlib
import importlib.util
import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import yaml
from stable_baselines3.common.callbacks import BaseCallback

from sb3_rainbow import RainbowDQN
from sb3_rainbow.checkpoint.folder import checkpoints, write_manifest, writing
from sb3_rainbow.sweep import driver
from sb3_rainbow.sweep.attempt import attempts, begin, claim, zoo_arguments
from sb3_rainbow.sweep.attempt import finish as finish_attempt
from sb3_rainbow.sweep.curve import EpisodeCurve
from sb3_rainbow.sweep.engine import Processes, arguments, launch
from sb3_rainbow.sweep.search import finished, load_study
from sb3_rainbow.sweep.suite import Run, check_known, expand, read
from sb3_rainbow.sweep.table import Board, Lines, Table, progress, results, view

SMALL = {"learning_starts": 100, "train_freq": 4, "gradient_steps": 1, "policy_kwargs": "dict(net_arch=[16])"}
#: Long enough to be killed between its first checkpoint and its end
FOUR: dict[str, Any] = {
    "envs": {"CartPole-v1": 2500},
    "algorithms": {"rainbow": {"algo": "rainbow", "hyperparams": SMALL}},
    "overrides": {"one": {"n_steps": 1}, "three": {"n_steps": 3}},
    "seeds": [0, 1],
    "checkpoint_freq": 200,
    "evaluation": {"n_games": 2},
}
TWO = FOUR | {"overrides": {"three": {"n_steps": 3}}}


def write(folder: Path, suite: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "suite.yml"
    path.write_text(yaml.safe_dump({"s": suite}, sort_keys=False))
    return path


def start(folder: Path, *options: str) -> subprocess.Popen:
    """The sweep of ``folder/suite.yml``."""
    command = [sys.executable, "-m", "sb3_rainbow.sweep", str(folder / "suite.yml"), "--out", str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == code, output
    return output


def manifests(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("s/*/manifest.json"))}


def hashes(folder: Path) -> dict[str, str]:
    return {name: manifest["parameters_sha256"] for name, manifest in manifests(folder).items()}


def of_attempts(folder: Path) -> dict[str, psutil.Process]:
    """By run, the process that trains it."""
    found = {}
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "sb3_rainbow.sweep.run" in command and str(folder) in command[-1]:
            found[Run.from_json(command[-1]).name] = process
    return found


def under_way(folder: Path) -> dict[str, psutil.Process]:
    """Those that have written a checkpoint, and are not done."""
    ready = {}
    for name, process in of_attempts(folder).items():
        run = folder / "s" / name
        begun = attempts(run)
        if begun and checkpoints(begun[-1] / "checkpoints") and not (run / "manifest.json").exists():
            ready[name] = process
    return ready


def wait_for(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def lines_to_keep(run: Path) -> set[str]:
    """Of its curve, what the newest checkpoint holds. With their seconds, which are others if a step is done again."""
    begun = attempts(run)[-1]
    step = int(checkpoints(begun / "checkpoints")[-1].name.split("_")[1])
    return {line for line in (begun / "curve.csv").read_text().split()[1:] if int(line.split(",")[0]) <= step}


def kill_each(folder: Path, sweep: subprocess.Popen, n_runs: int, victim: Callable[[psutil.Process], psutil.Process]) -> None:
    """Kill every run once, a little after one of its checkpoints, and see that it goes on from there."""
    generator, kept = random.Random(0), {}
    while len(kept) < n_runs:
        assert sweep.poll() is None, sweep.communicate()[0]
        for name, process in under_way(folder).items():
            if name not in kept:
                time.sleep(generator.random() / 5)
                with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # it has ended just now
                    lines = lines_to_keep(folder / "s" / name)
                    victim(process).kill()
                    kept[name] = lines
        time.sleep(0.02)
    wait_for(lambda: len(manifests(folder)) == n_runs)
    for name, lines in kept.items():
        assert lines
        assert lines <= set((folder / "s" / name / "curve.csv").read_text().split())


def itself(process: psutil.Process) -> psutil.Process:
    return process


def its_worker(process: psutil.Process) -> psutil.Process:
    parent = process.parent()
    if parent is None:
        raise psutil.NoSuchProcess(process.pid)
    assert "ray::" in parent.cmdline()[0]
    return parent


def alternately() -> Callable[[psutil.Process], psutil.Process]:
    calls: list[psutil.Process] = []

    def victim(process: psutil.Process) -> psutil.Process:
        calls.append(process)
        return its_worker(process) if len(calls) % 2 else process

    return victim


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    write(folder, FOUR)
    output = finish(start(folder, "--engine", "processes"))
    assert "CartPole-v1 rainbow-one:" in output
    assert "over 2 seeds" in output
    return folder


def test_a_run_leaves_its_curve_its_scores_and_where_they_come_from(undisturbed):
    assert sorted(hashes(undisturbed)) == [f"rainbow-{n}-CartPole-v1-{seed}" for n in ("one", "three") for seed in (0, 1)]
    assert len(set(hashes(undisturbed).values())) == 4
    for name, manifest in manifests(undisturbed).items():
        folder = undisturbed / "s" / name
        assert {path.name for path in folder.iterdir()} == {
            "curve.csv",
            "log.txt",
            "manifest.json",
            "run.json",
            "scores.csv",
            "zoo",
        }
        assert len((folder / "scores.csv").read_text().split()) == 3
        steps = [int(line.split(",")[0]) for line in (folder / "curve.csv").read_text().split()[1:]]
        assert steps == sorted(set(steps))
        assert 2000 < steps[-1] <= 2500
        assert manifest["attempts"] == 1
        assert manifest["command"][:3] == ["-m", "sb3_rainbow.zoo", "train"]


def test_runs_that_are_done_are_not_done_again(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    assert driver.main([str(undisturbed / "suite.yml"), "--out", str(undisturbed)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}


def test_a_run_is_not_gone_on_from_with_other_settings(undisturbed, tmp_path):
    path = write(tmp_path, FOUR | {"overrides": {"one": {"n_steps": 2}}})
    message = f"rainbow-one-CartPole-v1-0: hyperparams={SMALL | {'n_steps': 2}!r}, but {undisturbed}"
    with pytest.raises(ValueError, match=re.escape(message)):
        driver.main([str(path), "--suite", "s", "--out", str(undisturbed)])
    path = write(tmp_path, FOUR | {"envs": {"CartPole-v1": 5000}})
    with pytest.raises(ValueError, match=r"rainbow-one-CartPole-v1-0: steps=5000, but .* was begun with 2500"):
        driver.main([str(path), "--out", str(undisturbed)])
    (run, _) = expand("s", read(write(tmp_path, TWO))[1], tmp_path)
    claim(run)
    attempt = begin(run.folder)
    claim(run._replace(steps=77))  # it has nothing to lose yet
    checkpoint(attempt, 10)
    claim(run._replace(steps=77))
    with pytest.raises(ValueError, match=r"steps=2500, but .* was begun with 77"):
        claim(run)


def test_killed_processes_are_started_again_and_end_with_the_same_parameters(undisturbed, tmp_path):
    write(tmp_path, TWO)
    sweep = start(tmp_path, "--engine", "processes")
    kill_each(tmp_path, sweep, 2, itself)
    output = finish(sweep)
    assert output.count("attempt 2, the one before was killed") == 2, output
    assert len(hashes(tmp_path)) == 2
    assert hashes(tmp_path).items() <= hashes(undisturbed).items()
    same_curves(tmp_path, undisturbed)


def test_a_run_that_is_done_is_taken_for_no_other(tmp_path):
    (tmp_path / "own.yml").write_text("default: {}")
    settings = {"algo": "rainbow", "config": "own.yml", "hyperparams": {"n_steps": 2}}

    def run(**change: Any) -> Run:
        suite = TWO | {"seeds": [0], "overrides": {"": {}}, "evaluation": change.pop("evaluation", {"n_games": 5})}
        suite["algorithms"] = {"rainbow": settings | change}
        return expand("s", read(write(tmp_path, suite))[1], tmp_path)[0]

    done = run()
    claim(done)
    claim(run(evaluation={"n_games": 6}))  # it has not been evaluated
    (done.folder / "manifest.json").write_text(done.to_json())
    (done.folder / "run.json").unlink()  # as in a checkout
    claim(done)
    claim(done._replace(settings=done.settings | {"config": "/elsewhere/own.yml"}))
    for change, message in (
        ({"config": "low_budget"}, "config='low_budget', but .* was begun with 'own.yml'"),
        ({"config": None}, "config=None, but .* was begun with 'own.yml'"),
        ({"hyperparams": {}}, r"hyperparams={}, but .* was begun with {'n_steps': 2}"),
        ({"evaluation": {"n_games": 6}}, r"evaluation={'n_games': 6}, but .* was begun with {'n_games': 5}"),
    ):
        with pytest.raises(ValueError, match=message):
            claim(run(**change))


def test_callbacks_of_a_config_and_infinite_values_reach_the_training(tmp_path):
    callback = {"stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes": {"max_episodes": 3}}
    checkpoints = {"sb3_rainbow.checkpoint.ResumableCheckpointCallback": {"save_freq": 9, "folder": str(tmp_path / "theirs")}}
    config = {"default": {"n_timesteps": 9, "policy": "MlpPolicy", "callback": [checkpoints, callback]}}
    (tmp_path / "own.yml").write_text(yaml.safe_dump(config))
    hyperparams = SMALL | {"max_grad_norm": math.inf}
    suite = {
        "envs": {"CartPole-v1": 2500},
        "algorithms": {"r": {"algo": "rainbow", "config": "own.yml", "hyperparams": hyperparams}},
        "seeds": [0],
    }
    write(tmp_path, suite)
    finish(start(tmp_path, "--engine", "processes"))
    (curve,) = tmp_path.glob("s/*/curve.csv")
    assert len(curve.read_text().split()) == 1 + 3
    (saved,) = tmp_path.glob("s/*/zoo/rainbow/*/CartPole-v1.zip")
    assert RainbowDQN.load(saved).max_grad_norm == math.inf
    assert not (tmp_path / "theirs").exists(), "where other runs may write, too"


def same_curves(folder: Path, expected: Path) -> None:
    for path in folder.glob("s/*/curve.csv"):
        lines, others = (
            [line.rsplit(",", 1)[0] for line in file.read_text().split()]
            for file in (path, expected / path.relative_to(folder))
        )
        assert lines == others


@pytest.mark.parametrize(("suite", "n_runs"), [(TWO, 2), pytest.param(FOUR, 4, marks=pytest.mark.slow)])
def test_killed_workers_of_ray_are_replaced_and_end_with_the_same_parameters(undisturbed, tmp_path, suite, n_runs):
    pytest.importorskip("ray")
    write(tmp_path, suite)
    sweep = start(tmp_path, "--engine", "ray")
    kill_each(tmp_path, sweep, n_runs, alternately())
    finish(sweep)
    assert hashes(tmp_path).items() <= hashes(undisturbed).items()
    assert len(hashes(tmp_path)) == n_runs
    assert min(manifest["attempts"] for manifest in manifests(tmp_path).values()) >= 2
    same_curves(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("engine", "number"),
    [
        ("processes", signal.SIGKILL),
        pytest.param("processes", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("processes", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("ray", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_sweep_that_is_killed_goes_on_where_it_was(undisturbed, tmp_path, engine, number):
    if engine == "ray":
        pytest.importorskip("ray")
    write(tmp_path, TWO)
    sweep = start(tmp_path, "--engine", engine, "--jobs", "1")
    wait_for(lambda: manifests(tmp_path) and under_way(tmp_path))
    sweep.send_signal(number)
    start_of_end = time.monotonic()
    wait_for(lambda: not of_attempts(tmp_path), seconds=10)  # nothing trains behind its back
    print(f"its runs have ended {time.monotonic() - start_of_end:.1f} s later")
    output = finish(sweep, code=-number if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert "the same command goes on from here" in output
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/manifest.json")}
    # Ray takes a moment to see that the sweep was killed, in which the other run may get ready
    assert len(before) == 1 or engine == "ray"
    finish(start(tmp_path, "--engine", engine, "--jobs", "1"))
    assert before.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("s/*/manifest.json")}.items()
    assert hashes(tmp_path).items() <= hashes(undisturbed).items()
    n_attempts = {name: manifest["attempts"] for name, manifest in manifests(tmp_path).items()}
    assert n_attempts == {name: 1 if tmp_path / "s" / name / "manifest.json" in before else 2 for name in n_attempts}
    assert len(n_attempts) == 2
    same_curves(tmp_path, undisturbed)


def test_a_node_that_is_lost_does_not_change_the_numbers(undisturbed, tmp_path):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = {
            node.all_processes["raylet"][0].process.pid: node for node in (cluster.add_node(num_cpus=1) for _ in range(2))
        }
        write(tmp_path, TWO)
        sweep = start(tmp_path, "--address", cluster.address)

        def on_another_node() -> Any:
            for process in under_way(tmp_path).values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    for parent in process.parents():
                        if parent.pid in nodes:
                            return nodes[parent.pid]
            return None

        cluster.remove_node(wait_for(on_another_node), allow_graceful=False)
        finish(sweep)
    finally:
        cluster.shutdown()
    assert hashes(tmp_path).items() <= hashes(undisturbed).items()
    assert sorted(manifest["attempts"] for manifest in manifests(tmp_path).values()) == [1, 2]


def test_an_attempt_that_was_taken_for_dead_spoils_nothing(undisturbed, tmp_path):
    write(tmp_path, TWO)
    (run, _) = expand("s", read(tmp_path / "suite.yml")[1], tmp_path)
    command = [sys.executable, "-m", "sb3_rainbow.sweep.run", run.to_json()]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: under_way(tmp_path))
    first.send_signal(signal.SIGSTOP)  # as if its machine were not reached
    second = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(run.folder.glob("attempt-0002/checkpoints/*"))) > 1)
    first.send_signal(signal.SIGCONT)
    assert second.wait(timeout=120) == 0
    first.communicate(timeout=60)  # closes its input: it ends if it has not
    second.communicate()
    assert len(hashes(tmp_path)) == 1
    assert hashes(tmp_path).items() <= hashes(undisturbed).items()
    same_curves(tmp_path, undisturbed)


def test_a_run_that_is_killed_while_it_is_evaluated_trains_no_more(undisturbed, tmp_path):
    write(tmp_path, TWO | {"seeds": [0], "evaluation": {"n_games": 100}})
    sweep = start(tmp_path, "--engine", "processes")
    wait_for(lambda: list(tmp_path.glob("s/*/attempt-0001/zoo/rainbow/*/CartPole-v1.zip")))
    of_attempts(tmp_path).popitem()[1].kill()
    (curve,) = tmp_path.glob("s/*/attempt-0001/curve.csv")
    before = curve.read_text()
    finish(sweep)
    assert (curve.parents[1] / "curve.csv").read_text() == before, "its seconds would be others"
    assert [manifest["attempts"] for manifest in manifests(tmp_path).values()] == [2]
    assert hashes(tmp_path).items() <= hashes(undisturbed).items()
    same_curves(tmp_path, undisturbed)


@pytest.mark.parametrize("engine", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_run_that_dies_too_often_has_failed(tmp_path, engine):
    write(tmp_path, TWO | {"seeds": [0], "max_retries": 0})
    sweep = start(tmp_path, "--engine", engine)
    wait_for(lambda: under_way(tmp_path))
    of_attempts(tmp_path).popitem()[1].kill()
    output = finish(sweep, code=1)
    assert "1 failed:\nrainbow-three-CartPole-v1-0: " in output
    assert "killed by SIGKILL" in output


def test_a_run_that_fails_is_named_and_stops_no_other(tmp_path):
    bad = {"algo": "rainbow", "hyperparams": SMALL | {"n_steps": 0}}
    suite = {"envs": {"CartPole-v1": 300}, "algorithms": {"good": {"algo": "dqn"}, "bad": bad}, "seeds": [0]}
    write(tmp_path, suite | {"checkpoint_freq": 100})
    output = finish(start(tmp_path, "--engine", "processes"), code=1)
    assert "1 failed:\nbad-CartPole-v1-0: exit code 1: ValueError: n_steps=0" in output
    assert list(manifests(tmp_path)) == ["good-CartPole-v1-0"]
    assert not list(tmp_path.rglob("checkpoints")), "others than Rainbow have none"


def checkpoint(folder: Path, step: int) -> None:
    with writing(folder / "checkpoints", step, keep=2) as (temporary, _):
        (temporary / "data").write_text(str(step))
        write_manifest(temporary, {}, {})


@pytest.mark.filterwarnings("ignore:.*The checkpoint before it is taken")
def test_an_attempt_takes_the_newest_intact_checkpoint_of_those_before_it(tmp_path):
    first = begin(tmp_path)
    checkpoint(first, 10)
    (first / "curve.csv").write_text("curve")
    second = begin(tmp_path)
    assert attempts(tmp_path) == [second]
    assert (second / "curve.csv").read_text() == "curve"
    checkpoint(second, 20)
    newest = checkpoints(second / "checkpoints")[-1]
    third = tmp_path / "attempt-0003"  # killed while it took over
    third.mkdir()
    (third / "checkpoints" / newest.name).mkdir(parents=True)
    (third / "checkpoints" / newest.name / "data").write_text("2")
    fourth = begin(tmp_path)
    assert [path.name for path in attempts(tmp_path)] == ["attempt-0004"]
    assert [path.name for path in checkpoints(fourth / "checkpoints")] == [newest.name]
    assert (fourth / "curve.csv").read_text() == "curve"


def test_an_attempt_takes_no_checkpoint_without_a_curve(tmp_path):
    begin(tmp_path)
    second = begin(tmp_path)
    checkpoint(tmp_path / "attempt-0001", 10)  # taken for dead, it makes its folder again
    third = begin(tmp_path)
    assert attempts(tmp_path) == [third]
    assert not second.exists()
    assert not (third / "checkpoints").exists()


def test_an_attempt_whose_folder_is_gone_takes_nothing_from_the_run(tmp_path):
    (run, _) = expand("s", read(write(tmp_path, TWO))[1], tmp_path)
    for score in ("1", "2"):
        attempt = begin(run.folder)
        (attempt / "zoo").mkdir()
        (attempt / "zoo" / "model").write_text(score)
        finish_attempt(run, attempt, score, 0.0, [])
        assert (run.folder / "zoo" / "model").read_text() == score
        assert attempts(run.folder) == []
    with pytest.raises(FileNotFoundError):
        finish_attempt(run, attempt, "3", 0.0, [])
    assert (run.folder / "zoo" / "model").read_text() == "2"
    assert json.loads((run.folder / "manifest.json").read_text())["summary"] == "2"


SEARCH: dict[str, Any] = {
    "kind": "optimize",
    "envs": {"CartPole-v1": 200},
    "algorithms": {"rainbow": {"algo": "rainbow"}},
    "trials": 8,
    "workers": 2,
    "search": {"n_startup_trials": 4, "n_evaluations": 1, "eval_episodes": 1, "pruner": "none"},
}


def test_a_search_that_has_trials_goes_on_with_the_same_settings_and_none_running(tmp_path, monkeypatch):
    import optuna
    from optuna.trial import TrialState

    path, states = write(tmp_path, SEARCH), []
    run = expand("s", read(path)[1], tmp_path)[0]

    def study() -> optuna.Study:
        return load_study(run.search["storage"], run.search["study_name"])

    monkeypatch.setattr(driver, "sweep", lambda *_: states.extend(trial.state for trial in study().trials) or {})

    def begin_again(**changed: Any) -> int:
        write(tmp_path, SEARCH | changed)
        return driver.main([str(path), "--out", str(tmp_path), "--engine", "processes"])

    run.folder.mkdir(parents=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(run.search["storage"]))
    optuna.create_study(storage=storage, study_name=run.search["study_name"])
    assert begin_again() == 0
    assert begin_again(envs={"CartPole-v1": 300}) == 0  # nothing has been tried
    for worker in ("rainbow-CartPole-v1-worker-9", "rainbow-CartPole-v1-worker-0", "by-hand"):
        study().ask().set_user_attr("worker", worker)
    study().tell(study().ask(), 1.0)
    assert begin_again(envs={"CartPole-v1": 300}) == 0
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING, TrialState.COMPLETE]
    with pytest.raises(ValueError, match="worker-0: steps=200, but .* was begun with 300"):
        begin_again()


def test_the_best_trial_is_that_of_all_workers(tmp_path):
    runs = expand("s", read(write(tmp_path, SEARCH))[1], tmp_path)
    for run, value in zip(runs, (9.0, 7.0), strict=True):
        run.folder.mkdir(parents=True)
        manifest = {"summary": f"best trial 1: {value}", "best_value": value}
        (run.folder / "manifest.json").write_text(json.dumps(manifest))
    assert results(runs) == "rainbow-CartPole-v1: best trial 1: 9.0"


def test_a_curve_that_cannot_be_written_anew_stays(tmp_path, monkeypatch):
    path = tmp_path / "curve.csv"
    path.write_text("step,return,seconds\n4,1.0,2.0\n9,1.0")
    model = RainbowDQN("MlpPolicy", "CartPole-v1", buffer_size=50)
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        model.learn(1, callback=EpisodeCurve(str(path)))
    assert path.read_text().endswith("\n9,1.0")
    monkeypatch.undo()
    model.num_timesteps = 5
    model.learn(1, callback=EpisodeCurve(str(path)), reset_num_timesteps=False)
    assert path.read_text().split() == ["step,return,seconds", "4,1.0,2.0"]


def test_a_curve_is_on_the_disk_before_the_last_checkpoint(tmp_path, monkeypatch):
    path, events = tmp_path / "curve.csv", []

    class Last(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            events.append("checkpoint")

    monkeypatch.setattr(os, "fsync", lambda _: events.append(len(path.read_text().splitlines()) if path.exists() else 0))
    model = RainbowDQN("MlpPolicy", "CartPole-v1", buffer_size=50, learning_starts=1000)
    model.learn(200, callback=[Last(), EpisodeCurve(str(path))])
    n_lines = len(path.read_text().splitlines())
    assert n_lines > 3
    assert events == [0, n_lines, "checkpoint"]


def test_a_training_that_fails_at_once_shows_its_own_error(tmp_path):
    EpisodeCurve(str(tmp_path / "curve.csv")).on_training_end()  # as RL Zoo does


def test_two_workers_search_one_study_and_one_that_is_killed_is_replaced(tmp_path):
    import optuna
    from optuna.trial import TrialState

    write(tmp_path, SEARCH)
    sweep = start(tmp_path, "--engine", "processes", "--jobs", "2")
    storage = tmp_path / "s" / "rainbow-CartPole-v1.log"
    killed = "rainbow-CartPole-v1-worker-1"

    def study() -> optuna.Study:
        return load_study(str(storage), "rainbow-CartPole-v1")

    def trying() -> list[Any]:
        if not storage.exists() or storage.stat().st_size < 1000:
            return []
        return [trial for trial in study().trials if trial.user_attrs.get("worker") == killed]

    wait_for(trying)
    of_attempts(tmp_path)[killed].kill()
    output = finish(sweep)
    assert "rainbow-CartPole-v1: best trial" in output
    trials = study().get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert len(trials) >= 8
    assert len(study().get_trials(states=(TrialState.RUNNING,))) == 0
    assert {trial.user_attrs["worker"] for trial in study().trials} == {"rainbow-CartPole-v1-worker-0", killed}
    # The samplers have seeds of their own
    assert len({trial.params["learning_rate"] for trial in trials}) == len(trials)
    assert [manifest["attempts"] for manifest in manifests(tmp_path).values()] == [1, 2]
    worker = expand("s", read(tmp_path / "suite.yml")[1], tmp_path)[0]
    assert finished(worker) == (len(trials), study().best_value)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sedes": [0]}, "s: sedes=[0]: unknown key, the known ones are kind, envs,"),
    ({"envs": None}, "s: envs=None: must be given"),
    ({"envs": {}}, "s: envs={}: must be a mapping that is not empty"),
    ({"envs": {"CartPole-v1": "many"}}, "s: envs: CartPole-v1='many': must be an integer, at least 1"),
    ({"envs": {"CartPole-v77": 10}}, "s: envs: 'CartPole-v77' is not registered"),
    ({"envs": {"nowhere:Env-v0": 10}}, "s: envs: 'nowhere:Env-v0' is not registered"),
    ({"algorithms": {"a/b": {"algo": "dqn"}}}, "s: algorithms: a/b: label 'a/b': must be of letters"),
    ({"algorithms": {"a": {"algo": "rainbows"}}}, "s: algorithms: a: algo='rainbows': must be one of"),
    ({"algorithms": {"a": {"hyperparams": {}}}}, "s: algorithms: a: algo=None: must be a name of RL Zoo's"),
    ({"algorithms": {"a": {"algo": "dqn", "config": "no.yml"}}}, "s: algorithms: a: config='no.yml': no such file"),
    ({"algorithms": {"a": {"algo": "dqn", "hyperparam": {}}}}, "s: algorithms: a: hyperparam={}: unknown key"),
    ({"overrides": {"low": {"learning_rate": "1e-4"}}}, "s: overrides: low: learning_rate='1e-4': a text for YAML"),
    ({"overrides": {"low": [1]}}, "s: overrides: low=[1]: must be a mapping"),
    ({"seeds": 3}, "s: seeds=3: must be a list of different integers"),
    ({"seeds": [0, 0]}, "s: seeds=[0, 0]: must be a list of different integers"),
    ({"seeds": [-1]}, "s: seeds=-1: must be an integer, at least 0"),
    ({"checkpoint_freq": 0.5}, "s: checkpoint_freq=0.5: must be an integer, at least 0"),
    ({"num_gpus": "all"}, "s: num_gpus='all': must be a number in [0, 1024]"),
    ({"num_cpus": 0}, "s: num_cpus=0: must be a number in (0, 1024]"),
    ({"gym_packages": "minatar"}, "s: gym_packages='minatar': must be a list of modules"),
    ({"gym_packages": ["no_such_module"]}, "s: gym_packages: 'no_such_module' cannot be imported"),
    ({"evaluation": {"games": 3}}, "s: evaluation: games=3: unknown key"),
    ({"evaluation": {"epsilon": 2}}, "s: evaluation: epsilon=2: must be a number in [0, 1]"),
    ({"milestone": "high"}, "s: milestone='high': must be a number"),
    ({"reference": "ppo"}, "s: reference='ppo': must be one of 'rainbow'"),
    ({"reference": None}, "s: reference=None: must be left out, or have a value"),
    ({"reference": "rainbow", "overrides": {"one": {"n_steps": 1}}}, "s: reference='rainbow': must be one of 'rainbow-one'"),
    ({"num_gpus": 1000}, "s: num_gpus=1000: must be at most "),
    (
        {
            "algorithms": {"a": {"algo": "rainbow"}, "a-b": {"algo": "rainbow"}},
            "overrides": {"": {}, "b": {"n_steps": 1}},
        },
        "s: a-b in CartPole-v1 and a-b in CartPole-v1: both are called a-b-CartPole-v1-0",
    ),
    (
        {"algorithms": {"a": {"algo": "dqn", "config": "low_budget"}}},
        "s: algorithms: a: config='low_budget': no such file, nor, for rainbow, one of",
    ),
    ({"kind": "race"}, "s: kind='race': must be one of 'train', 'optimize'"),
    ({"kind": "optimize"}, "s: seeds=[0, 1]: unknown key"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_with_a_suite_is_said_before_anything_starts(tmp_path, change, message):
    suite = {key: value for key, value in FOUR.items() if key != "overrides"} | change
    if change.get("kind") == "optimize":
        suite = {"kind": "optimize"} | {key: suite[key] for key in ("envs", "algorithms", "seeds")}
    path = write(tmp_path, suite)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        driver.main([str(path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("[1", [], "cannot be read as YAML"),
        ("3", [], "must be a mapping"),
        ("{a: {}, b: {}}", [], "holds several suites: say which by --suite, one of a, b"),
        ("{envs: {CartPole-v1: 10}, seeds: [0]}", [], "suite: algorithms=None: must be given"),
        (yaml.safe_dump(SEARCH | {"search": {"sampler": "grid"}}), [], "sampler='grid': must be one of 'random', 'tpe'"),
        (yaml.safe_dump(SEARCH | {"search": {"n_evaluations": 0}}), [], "n_evaluations=0: must be an integer, at least 1"),
        (yaml.safe_dump(SEARCH | {"workers": 9}), [], "workers=9: are more than trials=8"),
        ("{a: {}, b: {}}", ["--suite", "c"], "suite='c': must be one of 'a', 'b'"),
        (yaml.safe_dump(TWO), ["--only", "nothing"], "only='nothing': no run of suite is called so"),
        (yaml.safe_dump(TWO), ["--jobs", "0"], "jobs=0: must be an integer, at least 1"),
    ],
)
def test_wrong_files_and_options_are_named(tmp_path, content, options, message):
    (tmp_path / "suite.yml").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        driver.main([str(tmp_path / "suite.yml"), *options])


def test_a_suite_is_every_environment_with_every_algorithm_override_and_seed(tmp_path):
    config = tmp_path / "own.yml"
    config.write_text("default: {}")
    rainbow = {"algo": "rainbow", "config": "own.yml", "hyperparams": {"n_steps": 1, "alpha": 0.1}}
    suite = FOUR | {
        "envs": {"CartPole-v1": 10, "MinAtar/Breakout-v1": 20},
        "algorithms": {"r": rainbow, "d": {"algo": "dqn"}},
        "overrides": {"base": {}, "n": {"n_steps": 9}},
    }
    name, full = read(write(tmp_path, suite))
    runs = expand(name, full, tmp_path)
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * 2 * 2
    assert [run.name for run in runs[:4]] == [f"{label}-CartPole-v1-0" for label in ("r-base", "r-n", "d-base", "d-n")]
    assert runs[1].settings == {"algo": "rainbow", "config": str(config), "hyperparams": {"n_steps": 9, "alpha": 0.1}}
    assert runs[4].folder == tmp_path / "s" / "r-base-MinAtar-Breakout-v1-0"
    assert runs[4].steps == 20
    assert Run.from_json(runs[3].to_json()) == runs[3]


def test_the_benchmarks_suites_are_right_and_their_results_are_of_them():
    folder = Path(__file__).parents[1] / "benchmarks/learning"
    n_done = 0
    for name in yaml.safe_load((folder / "suites.yml").read_text()):
        runs = expand(name, read(folder / "suites.yml", name)[1], folder / "results")
        assert runs
        done = [run for run in runs if run.is_done]
        n_done += len(done)
        for run in done:
            claim(run)
    assert n_done > 10


def test_only_takes_the_runs_whose_names_contain_it(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(driver, "sweep", lambda runs, *_: taken.extend(run.name for run in runs) or {})
    path = write(tmp_path, FOUR)
    assert driver.main([str(path), "--out", str(tmp_path), "--engine", "processes", "--only", "one-CartPole"]) == 0
    assert taken == ["rainbow-one-CartPole-v1-0", "rainbow-one-CartPole-v1-1"]
    assert sorted(run.name for run in (tmp_path / "s").iterdir()) == taken


@pytest.mark.parametrize(("share", "seen"), [({"num_cpus": 2}, ""), ({"num_cpus": 0.5, "num_gpus": 0.25}, "0,1")])
def test_a_run_gets_its_share_and_the_modules_beside_its_suite(tmp_path, monkeypatch, share, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.syspath_prepend(tmp_path)  # undoes what check_known adds
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/own_games.py").write_text("import gymnasium\ngymnasium.register('Own-v0', lambda: None)\n")
    suite = TWO | share | {"envs": {"Own-v0": 10}, "gym_packages": ["own_games"]}
    name, read_suite = read(write(tmp_path / "beside", suite))
    check_known(name, read_suite, str(tmp_path / "beside"))
    run = expand(name, read_suite, tmp_path, str(tmp_path / "beside"))[0]

    launched = Mock()
    monkeypatch.setattr(subprocess, "Popen", launched)
    launch(*arguments(run))
    environment = launched.call_args.kwargs["env"]
    assert environment["OMP_NUM_THREADS"] == str(max(1, int(share["num_cpus"])))
    assert environment["CUDA_VISIBLE_DEVICES"] == seen
    assert environment["PYTHONPATH"].split(os.pathsep)[-1] == str(tmp_path / "beside")
    options = zoo_arguments(run, tmp_path)
    assert options[options.index("--num-threads") + 1] == environment["OMP_NUM_THREADS"]
    assert options[options.index("--gym-packages") + 1] == "own_games"


@pytest.fixture
def running(tmp_path) -> Iterator[Run]:
    (run, _) = expand("s", read(write(tmp_path, TWO))[1], tmp_path)
    attempt = begin(run.folder)
    lines = [f"{100 * i},{i},{2 * i}" for i in range(1, 40)]
    (attempt / "curve.csv").write_text("step,return,seconds\n" + "\n".join(lines) + "\n3950,4")
    return run


def test_progress_is_read_from_the_curve_that_is_being_written(running):
    assert progress(running) == (3900, 50.0, sum(range(20, 40)) / 20, 1)
    begin(running.folder)
    assert progress(running)[0::3] == (0, 2)


def test_a_database_is_made_before_the_workers_start_and_may_be_away_for_a_moment(tmp_path, monkeypatch):
    path = tmp_path / "s" / "study.db"
    suite = write(tmp_path, SEARCH | {"storage": f"sqlite:///{path}"})
    monkeypatch.setattr(driver, "sweep", lambda *_: {} if path.exists() else pytest.fail("no database"))
    assert driver.main([str(suite), "--out", str(tmp_path), "--engine", "processes"]) == 0
    run = expand("s", read(suite)[1], tmp_path)[0]
    begin(run.folder)
    assert finished(run)[0] == progress(run).step == 0  # no worker has begun
    monkeypatch.setattr("sb3_rainbow.sweep.table.finished", Mock(side_effect=OSError("database is locked")))
    assert progress(run).attempt == 1
    path.unlink()
    path.mkdir()
    with pytest.raises(Exception, match="unable to open database file"):
        driver.main([str(suite), "--out", str(tmp_path), "--engine", "processes"])


def test_the_table_and_the_lines_show_runs_and_attempts(running, capsys):
    from rich.console import Console
    from rich.live import Live

    board = Board([running, running._replace(folder=running.folder.with_name("other"))])
    board.running.append(running)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=30)
    with Live(console=console, auto_refresh=False) as live:
        Table(live).update(board)
    shown = console.file.getvalue()
    for text in ("0 of 2 done, 1 running, 1 waiting, 0 failed, 50 steps/s", running.name, "3,900", "2,500", "29.5"):
        assert text in shown
    lines = Lines()
    lines.update(board)
    begin(running.folder)
    lines.update(board)
    assert capsys.readouterr().out == f"{running.name}: attempt 2, the one before was killed\n"
    assert results(board.runs) == ""


@pytest.mark.parametrize(("terminal", "rich", "shown"), [(True, True, Table), (True, False, Lines), (False, True, Lines)])
def test_a_table_is_shown_where_there_is_a_terminal_and_rich(monkeypatch, terminal, rich, shown):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if rich or name != "rich" else None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    with view() as used:
        assert isinstance(used, shown)


def test_without_ray_one_line_says_what_it_would_add(tmp_path, monkeypatch, capsys):
    find = driver.importlib.util.find_spec
    monkeypatch.setattr(driver.importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    monkeypatch.setattr(driver, "sweep", lambda runs, engine, jobs, shown: {})
    assert driver.main([str(write(tmp_path, TWO)), "--out", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()[:1]
    assert line.startswith('Runs are processes of this machine. pip install "sb3-rainbow[ray]" adds clusters')
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"sb3-rainbow\[ray\]"):
        driver.main([str(tmp_path / "suite.yml"), "--out", str(tmp_path), "--address", "auto"])


@pytest.mark.parametrize(
    ("options", "num_gpus", "variable", "engine"),
    [
        ([], 0, None, "Processes"),
        ([], 0.5, None, "Ray"),
        ([], 0, "10.0.0.1:6379", "Ray"),
        (["--engine", "ray"], 0, None, "Ray"),
        (["--address", "auto"], 0, None, "Ray"),
        (["--engine", "processes"], 0.5, "10.0.0.1:6379", "Processes"),
    ],
)
def test_ray_is_used_where_it_brings_something(tmp_path, monkeypatch, options, num_gpus, variable, engine):
    class Used(Exception):
        pass

    class FakeRay(Processes):
        def __init__(self, address, num_cpus):
            super().__init__()

    def use(runs, used, jobs, shown):
        raise Used(type(used).__name__)

    monkeypatch.setattr(driver, "sweep", use)
    find = driver.importlib.util.find_spec
    monkeypatch.setattr(driver.importlib.util, "find_spec", lambda name: name == "ray" or find(name))
    monkeypatch.setattr(driver, "Ray", FakeRay)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(Used, match=engine):
        driver.main([str(write(tmp_path, TWO | {"num_gpus": num_gpus})), "--out", str(tmp_path), *options])


def test_neither_ray_nor_rl_zoo_is_imported_with_the_sweep():
    code = "import sys, sb3_rainbow.sweep.driver; print({'ray', 'rl_zoo3', 'optuna'} & set(sys.modules))"
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "set()", done.stderr

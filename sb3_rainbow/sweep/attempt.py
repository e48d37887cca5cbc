"""
Folders of the attempts at a run, and how they use RL Zoo.

Every attempt has a folder of its own, and takes the newest checkpoint of those before it. So an attempt whose machine is taken
for dead, but which still writes to a shared disk, spoils nothing. What it has made becomes the run's when all of it is there:
``manifest.json`` comes last.
"""

import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sb3_rainbow import zoo
from sb3_rainbow.checkpoint.folder import checkpoints, flush, flush_entries, latest, link
from sb3_rainbow.sweep.suite import Run

PACKAGES = ("sb3-rainbow", "stable-baselines3", "sb3-contrib", "rl_zoo3", "torch", "numpy", "gymnasium", "ale-py")


def attempts(folder: Path) -> list[Path]:
    """
    :param folder: of a run
    :return: folders of its attempts that are left, oldest first
    """
    return sorted(folder.glob("attempt-*"))


def claim(run: Run, has_trials: bool = False) -> None:
    """
    Write down in a run's folder what it is. From its first checkpoint, or finished trial, on it must be the same: nothing goes
    on with other settings, and what is done is not taken for something else.

    :param run: about to be started, or done
    :param has_trials: of a search: whether any has finished
    :raises ValueError: if its folder holds a run with other settings
    """
    path = run.folder / ("manifest.json" if run.is_done else "run.json")
    begun = has_trials or any(checkpoints(attempt / "checkpoints") for attempt in attempts(run.folder))
    if not run.is_done and not (begun and path.exists()):
        run.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".writing")
        temporary.write_text(run.to_json())
        temporary.replace(path)
        return
    before, now = (_identity(json.loads(text), run.is_done) for text in (path.read_text(), run.to_json()))
    for name, new in now.items():
        old = before[name]
        if old != new:
            raise ValueError(
                f"{run.name}: {name}={new!r}, but {run.folder} was begun with {old!r}: remove it, or use another label"
            )


def _identity(fields: dict[str, Any], is_done: bool) -> dict[str, Any]:
    """What decides a run's numbers. A config by its name: another checkout has it elsewhere, and who resumes compares all."""
    settings = fields["settings"]
    config = settings.get("config")
    return {
        "env": fields["env"],
        "steps": fields["steps"],
        "algo": settings["algo"],
        "config": config and Path(config).name,
        "hyperparams": settings.get("hyperparams", {}),
        "trials": fields.get("search", {}).get("trials"),
        # Until the end it may change
        "evaluation": fields["evaluation"] if is_done else None,
    }


def number_of(attempt: Path) -> int:
    """
    :param attempt: folder of an attempt
    :return: which attempt it is, from 1
    """
    return int(attempt.name.rsplit("-", 1)[1])


def begin(folder: Path) -> Path:
    """
    Make a folder for a new attempt, with what those before it left: the newest checkpoint and the curve.

    :param folder: of the run
    :return: folder of the attempt
    """
    earlier = attempts(folder)
    number = number_of(earlier[-1]) + 1 if earlier else 1
    while True:
        attempt = folder / f"attempt-{number:04d}"
        try:
            attempt.mkdir(parents=True)
            break
        except FileExistsError:  # another one began just now
            number += 1
    for before in reversed(earlier):
        newest = latest(before / "checkpoints")
        # The curve is the run's already, if the attempt was killed at its very end. There is none where an attempt that was
        # taken for dead has gone on writing checkpoints into a folder that was removed
        curves = [path for path in (before / "curve.csv", folder / "curve.csv") if path.exists()]
        if newest is not None and curves:
            shutil.copyfile(curves[0], attempt / "curve.csv")
            shutil.copytree(newest, attempt / "checkpoints" / newest.name, copy_function=link)
            break
    flush(attempt)
    flush_entries(folder)
    for before in earlier:
        shutil.rmtree(before, ignore_errors=True)
    return attempt


def zoo_arguments(run: Run, attempt: Path) -> list[str]:
    """
    :param run: training or search
    :param attempt: folder of the attempt
    :return: RL Zoo's arguments that all runs have
    """
    arguments = ["--algo", run.settings["algo"], "--env", run.env, "-n", str(run.steps), "-f", str(attempt / "zoo")]
    arguments += ["--num-threads", str(max(1, int(run.num_cpus)))]
    if run.gym_packages:
        arguments += ["--gym-packages", *run.gym_packages]
    if "config" in run.settings:
        arguments += ["-conf", run.settings["config"]]
    return arguments


def run_zoo(arguments: list[str]) -> None:
    """
    RL Zoo's ``train`` in this process.

    :param arguments: as on its command line
    """
    sys.argv = ["sb3_rainbow.zoo", "train", *arguments]
    zoo.main()


def parameters(hyperparams: dict[str, Any]) -> list[str]:
    """
    :param hyperparams: by name
    :return: RL Zoo's arguments that say so
    """
    return ["-params", *(f"{key}:{_python(value)}" for key, value in hyperparams.items())] if hyperparams else []


def _python(value: Any) -> str:
    """An expression of that value. ``repr`` is none for YAML's ``.inf`` and ``.nan``."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_python(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    return f"float({str(value)!r})" if isinstance(value, float) and not math.isfinite(value) else repr(value)


def finish(run: Run, attempt: Path, result: str, seconds: float, arguments: list[str], **more: Any) -> None:
    """
    Make what the attempt has made the run's.

    :param run: what was done
    :param attempt: folder of the attempt
    :param result: one line
    :param seconds: that it took, with the attempts before it as far as they count
    :param arguments: RL Zoo's
    :param more: entries of the manifest
    :raises OSError: if the attempt's folder is gone: it was taken for dead, and what the run has stays
    """
    manifest = run._asdict() | {
        "folder": run.name,
        "summary": result,
        "seconds": round(seconds),
        "command": ["-m", "sb3_rainbow.zoo", "train", *arguments],
        "attempts": number_of(attempt),
        **more,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    (attempt / "manifest.json").write_text(json.dumps(manifest, indent=1))
    made = [name for name in ("zoo", "curve.csv", "scores.csv") if (attempt / name).exists()]
    for name in (*made, "manifest.json"):
        flush(attempt / name)
        if (run.folder / name).is_dir():  # of an attempt that was killed right here
            os.replace(run.folder / name, attempt / f"earlier-{name}")
        os.replace(attempt / name, run.folder / name)
        flush_entries(run.folder)  # the manifest's comes after all others
    for path in attempts(run.folder):
        shutil.rmtree(path, ignore_errors=True)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    """What git says of the checkout that this file belongs to; nothing if it is none of git's."""
    command = ["git", "-C", str(Path(__file__).parent)]
    try:
        # Not this process's input: on Windows another thread's read of it would hold up git
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        if subprocess.run([*command, "ls-files", "--error-unmatch", __file__], **options).returncode:
            return ""
        return subprocess.run([*command, *arguments], **options).stdout.strip()
    except OSError:
        return ""

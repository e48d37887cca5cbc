"""What numbers were measured on."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch as th

PACKAGES = (
    "sb3-rainbow",
    "torch",
    "numpy",
    "stable-baselines3",
    "sb3-contrib",
    "ale-py",
    "tianshou",
    "torchrl",
    "cpprb",
    "pfrl",
)


def versions() -> dict[str, str]:
    """:return: of what was measured"""
    installed = {
        distribution.name.lower().replace("_", "-"): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in PACKAGES if name in installed}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def machine() -> dict[str, Any]:
    """:return: what the numbers were measured on, and the code's commit"""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch_cpu_capability": th.backends.cpu.get_cpu_capability(),
        "versions": versions(),
        "commit": _commit(),
        "command": shlex.join(["python", *sys.argv]),
    }


def describe(about: dict[str, Any]) -> str:
    """
    :param about: what ``machine`` returned
    :return: the last lines of a report
    """
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    hardware = f"{about['cpu']} ({about['torch_cpu_capability']}), {about['cores']} cores, Python {about['python']}"
    return f"{hardware}. Commit {about['commit']}. {versions}.\n\nCommand: `{about['command']}`\n"

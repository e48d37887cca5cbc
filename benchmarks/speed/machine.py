"""What numbers were measured on."""

import importlib.metadata
import os
import platform
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
    installed = {distribution.name.lower(): distribution.version for distribution in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def machine() -> dict[str, Any]:
    """:return: what the numbers were measured on"""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch_cpu_capability": th.backends.cpu.get_cpu_capability(),
        "versions": versions(),
        "command": " ".join(["python", *sys.argv]),
    }

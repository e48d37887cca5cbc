"""Vectorised environments."""

from typing import Any

from sb3_rainbow.envs.actors import RayVecEnv
from sb3_rainbow.envs.subproc import SubprocVecEnv, WorkerError

__all__ = ["RayVecEnv", "SubprocVecEnv", "WorkerError"]


def __getattr__(name: str) -> Any:
    if name == "AtariVecEnv":  # needs the extra "atari"
        try:
            from sb3_rainbow.envs.atari import AtariVecEnv
        except ModuleNotFoundError as error:
            raise ImportError(f'AtariVecEnv needs pip install "sb3-rainbow[atari]" ({error})') from error
        return AtariVecEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

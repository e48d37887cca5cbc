"""Vectorised environments."""

from typing import TYPE_CHECKING, Any

from sb3_rainbow.envs.subproc import SubprocVecEnv, WorkerError

if TYPE_CHECKING:
    from sb3_rainbow.envs.atari import AtariVecEnv

__all__ = ["AtariVecEnv", "SubprocVecEnv", "WorkerError"]


def __getattr__(name: str) -> Any:
    if name == "AtariVecEnv":  # needs the extra "atari"
        from sb3_rainbow.envs.atari import AtariVecEnv

        return AtariVecEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

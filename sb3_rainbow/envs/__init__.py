"""Vectorised environments."""

from sb3_rainbow.envs.subproc import SubprocVecEnv, WorkerError

__all__ = ["SubprocVecEnv", "WorkerError"]

"""SB3's SubprocVecEnv, whose workers may die or hang."""

import contextlib
import math
import time
import weakref
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv as SB3SubprocVecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_rainbow.arguments import check_number
from sb3_rainbow.checkpoint.encoding import Arrays, Unencodable, read_object, restore_object

#: Seconds that ``close`` waits for all workers before it kills them
CLOSING = 3.0
#: Seconds that a worker may take to start and to make its environment, or the timeout if that is longer
STARTING = 60.0
#: Seconds of one wait for an answer. Clocks go on while this process is stopped, by which no more than one may be lost
SPELL = 1.0


class WorkerError(RuntimeError):
    """A worker process died, or does not answer."""


class _Remote:
    """The parent's end of a worker's pipe, with an error instead of an endless wait."""

    def __init__(self, connection: Any, owner: Any, number: int, timeout: float) -> None:
        # Not a cycle: an environment that is dropped ends its workers at once
        self._owner: Any = weakref.proxy(owner)
        self.connection, self._number = connection, number
        self.timeout = timeout
        self._n_unanswered = 0

    def send(self, message: Any) -> None:
        if self._owner._error is not None:  # an answer that nobody took would be taken for that to this message
            raise self._owner._error
        while self._n_unanswered > 0:  # nor is the answer to what was interrupted
            self.recv()
        try:
            self.connection.send(message)
            self._n_unanswered += 1
        except OSError as error:
            raise self._died() from error

    def recv(self) -> Any:
        # The other end may live on in forked workers, so a death alone does not close the pipe
        ends = [self.connection, self._process.sentinel]
        try:
            ready: list[Any] = []
            left = self.timeout
            while not ready and left > 0:
                ready = wait(ends, min(SPELL, left))
                left -= SPELL
            if self.connection in ready:
                answer = self.connection.recv()
                self._n_unanswered -= 1
                return answer
        except (EOFError, OSError) as error:
            raise self._died() from error
        if ready:
            raise self._died()
        raise self._failed(
            f"did not answer for {self.timeout:g} s; a longer timeout can be set by SubprocVecEnv(..., timeout=...)"
        )

    def close(self) -> None:
        self.connection.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """What a new worker is given, to close it there: the end itself."""
        return _itself, (self.connection,)

    @property
    def _process(self) -> Any:
        return self._owner.processes[self._number]

    def _died(self) -> WorkerError:
        self._process.join(CLOSING)
        code = self._process.exitcode
        return self._failed(
            f"died with the exit code {code}: negative ones are signals, and the worker's own error is printed above"
        )

    def _failed(self, how: str) -> WorkerError:
        error = self._owner._error = WorkerError(f"worker {self._number} (process {self._process.pid}) {how}")
        return error


def _itself(connection: Any) -> Any:
    return connection


def _write_state(env: Any, node: Any, arrays: Arrays) -> str:
    """Why it could not be done; empty if it was."""
    try:
        restore_object(env, node, arrays, "env")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def make_readable(env_fn: Callable[[], gym.Env[Any, Any]]) -> Callable[[], gym.Env[Any, Any]]:
    """
    The environment itself, with two more methods: a wrapper would change what ``set_attr`` reaches.

    :param env_fn: makes it
    :return: makes it with the methods
    """

    def make() -> gym.Env[Any, Any]:
        env: Any = _patch_env(env_fn())
        env.read_state = lambda: read_object(env, "env")
        env.write_state = lambda node, arrays: _write_state(env, node, arrays)
        return env

    return make


class ReadableEnvs:
    """State of environments in other processes, which ``make_readable`` has made there; for a ``VecEnv``."""

    def state_dict(self: Any) -> dict[str, Any]:
        """
        :return: state of all environments, for a checkpoint
        :raises Unencodable: if one cannot be read
        """
        states = self.env_method("read_state")
        for i, (node, arrays) in enumerate(states):
            if node is None:
                raise Unencodable(f"environment {i}: {arrays}")
        return {"envs": [list(state) for state in states]}

    def load_state_dict(self: Any, state: dict[str, Any]) -> None:
        """
        :param state: what ``state_dict()`` returned, for as many environments
        :raises ValueError: if an environment is not like the one that was stored
        """
        for i, (node, arrays) in enumerate(state["envs"]):
            if problem := self.env_method("write_state", node, arrays, indices=i)[0]:
                raise ValueError(f"environment {i}: {problem}")


class SubprocVecEnv(ReadableEnvs, SB3SubprocVecEnv):
    """
    Environments in processes of their own. As SB3's, and:

    - if a worker dies or does not answer in time, also while its environment is made, there is an error that names it, and
      ``close`` returns within seconds;
    - checkpoints can hold the environments' state.

    :param env_fns: make the environments
    :param start_method: how processes start, see SB3
    :param timeout: seconds to wait for one answer of a worker
    :raises ValueError: if the timeout is not positive
    :raises WorkerError: if a worker died or did not answer; those that live have been ended
    """

    #: Of the first worker that failed: from then on there is no other answer than this
    _error: WorkerError | None = None

    def __init__(
        self, env_fns: list[Callable[[], gym.Env[Any, Any]]], start_method: str | None = None, timeout: float = 60.0
    ) -> None:
        check_number("timeout", timeout, 0, math.inf, low_open=True)
        self._timeout = max(timeout, STARTING)
        try:
            super().__init__([make_readable(env_fn) for env_fn in env_fns], start_method)
        except WorkerError:
            self.close()
            raise
        for remote in self.remotes:
            remote.timeout = timeout

    @property
    def remotes(self) -> tuple[Any, ...]:
        """The parent's ends of the pipes, which SB3 sets before it starts the workers, and uses in its constructor."""
        return self._remotes

    @remotes.setter
    def remotes(self, connections: tuple[Any, ...]) -> None:
        """:param connections: SB3's"""
        self._remotes = tuple(_Remote(connection, self, i, self._timeout) for i, connection in enumerate(connections))

    def close(self) -> None:
        """Stop all workers: those that do not stop by themselves within seconds are killed."""
        if self.closed:
            return
        for remote in self.remotes:
            with contextlib.suppress(OSError):
                remote.connection.send(("close", None))
        deadline = time.monotonic() + CLOSING
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for remote in self.remotes:
            remote.close()
        self.closed = True

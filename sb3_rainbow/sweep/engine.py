"""Where attempts run: as tasks of Ray, or as processes of this machine. Both start an attempt again whose process died."""

import os
import signal
import subprocess
import sys
import time
from typing import Any, Protocol

from sb3_rainbow.cluster import connect
from sb3_rainbow.sweep.suite import Run


class Engine(Protocol):
    """Starts runs, and says which have ended."""

    def start(self, run: Run) -> None:
        """
        :param run: to be started, and again if it dies, up to ``max_retries`` times
        """

    def ended(self, timeout: float) -> list[tuple[Run, str]]:
        """
        Wait until one has ended.

        :param timeout: seconds to wait at most
        :return: those that ended, and why; no text if there was no error
        """

    def close(self) -> None:
        """End all."""


def launch(run: str, folder: str, python_path: str, threads: int, use_gpu: bool) -> "subprocess.Popen[bytes]":
    """
    Start an attempt, which ends when this process ends. In Ray's workers too, so it imports nothing of ours: they stay small.

    :param run: as JSON
    :param folder: of the run; what the attempt prints is added to ``log.txt`` in it
    :param python_path: where more modules are found
    :param threads: of all libraries
    :param use_gpu: whether it sees a GPU
    :return: its process
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), python_path]))
    if not use_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "log.txt"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sb3_rainbow.sweep.run", run],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # an interrupt of the terminal is for the sweep
        )


def arguments(run: Run) -> tuple[str, str, str, int, bool]:
    """
    :param run: to be launched
    :return: arguments of ``launch``
    """
    return run.to_json(), str(run.folder), run.python_path, max(1, int(run.num_cpus)), run.num_gpus > 0


def error_of(run: Run, code: int) -> str:
    """
    :param run: that has ended
    :param code: its exit code
    :return: the error: the last line that it printed; nothing if there was none
    """
    # A network file system may show the manifest late; an attempt that was taken for dead may have written it
    if code == 0 or run.is_done:
        return ""
    try:
        lines = (run.folder / "log.txt").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"exit code {code}: {lines[-1] if lines else 'it printed nothing'}"


class Processes(Engine):
    """Processes of this machine."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Run, subprocess.Popen[bytes], int]] = {}

    def start(self, run: Run) -> None:
        self._running[run.name] = (run, launch(*arguments(run)), 1)

    def ended(self, timeout: float) -> list[tuple[Run, str]]:
        deadline = time.monotonic() + timeout
        ended: list[tuple[Run, str]] = []
        while not ended and time.monotonic() < deadline:
            time.sleep(0.1)
            for run, process, times in list(self._running.values()):
                code = process.poll()
                if code is None:
                    continue
                process.communicate()
                if code < 0 and not run.is_done:
                    if times <= run.max_retries:
                        self._running[run.name] = (run, launch(*arguments(run)), times + 1)
                        continue
                    error = f"after {run.max_retries} retries: killed by {signal.Signals(-code).name}"
                else:
                    error = error_of(run, code)
                del self._running[run.name]
                ended.append((run, error))
        return ended

    def close(self) -> None:
        for _, process, _ in self._running.values():
            process.kill()
            process.communicate()
        self._running = {}


def run_task(launched: tuple[str, str, str, int, bool]) -> int:
    """
    What a task of Ray does.

    :param launched: arguments of ``launch``
    :return: exit code
    :raises RuntimeError: if it was killed; Ray starts the task again
    """
    process = launch(*launched)
    code = process.wait()
    if code < 0:
        raise RuntimeError(f"killed by {signal.Signals(-code).name}")
    return code


class Ray(Engine):
    """
    Tasks of Ray.

    :param address: of the cluster; None for a Ray of this machine's own, see ``connect``
    :param num_cpus: cores of this machine's own Ray
    """

    def __init__(self, address: str | None, num_cpus: int) -> None:
        self._ray = connect(address, num_cpus)
        # Ray's workers get the functions' code. Importing them would import torch there, for a process that only waits
        self._ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        self._running: dict[Any, Run] = {}

    def start(self, run: Run) -> None:
        options = {"num_cpus": run.num_cpus, "num_gpus": run.num_gpus, "max_retries": run.max_retries}
        task = self._ray.remote(retry_exceptions=True, name=run.name, **options)(run_task)
        self._running[task.remote(arguments(run))] = run

    def ended(self, timeout: float) -> list[tuple[Run, str]]:
        ready, _ = self._ray.wait(list(self._running), timeout=timeout)
        ended = []
        for reference in ready:
            run = self._running.pop(reference)
            try:
                error = error_of(run, self._ray.get(reference))
            except self._ray.exceptions.RayError as problem:
                error = "" if run.is_done else f"after {run.max_retries} retries: {str(problem).strip().splitlines()[-1]}"
            ended.append((run, error))
        return ended

    def close(self) -> None:
        """End all. Their processes end with Ray's workers."""
        self._ray.shutdown()
        self._running = {}

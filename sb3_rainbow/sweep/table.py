"""What a user sees of a sweep: a live table, or plain lines where there is no terminal."""

import contextlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Collection, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sb3_rainbow.sweep.attempt import attempts, number_of
from sb3_rainbow.sweep.search import finished
from sb3_rainbow.sweep.suite import Run

#: Episodes over which the last score and the speed are taken
LAST = 20
#: Seconds between two lines that say how far all is
LINE_INTERVAL = 60.0


class Progress(NamedTuple):
    """How far a run is."""

    #: Agent steps at the end of the last episode; in a search, trials of its study that have finished
    step: int = 0
    #: Agent steps per second
    speed: float = 0.0
    #: Mean return of the last episodes; in a search, best value
    score: float = math.nan
    #: Which attempt it is, from 1; 0 before the first
    attempt: int = 0


def progress(run: Run) -> Progress:
    """
    :param run: one that is running, here or on another machine
    :return: how far it is, from its files
    """
    begun = attempts(run.folder)
    if not begun:
        return Progress()
    number = number_of(begun[-1])
    if run.search:
        try:
            trials, best = finished(run)
        except Exception:  # a database may be busy, or away for a moment: that is no reason to end the workers
            return Progress(attempt=number)
        return Progress(trials, score=best, attempt=number)
    lines = _tail(begun[-1] / "curve.csv")
    if len(lines) == 0:
        return Progress(attempt=number)
    seconds = lines[-1, 2] - lines[0, 2]
    speed = (lines[-1, 0] - lines[0, 0]) / seconds if seconds > 0 else 0.0
    return Progress(int(lines[-1, 0]), float(speed), float(lines[:, 1].mean()), number)


def _tail(curve: Path) -> np.ndarray:
    """``[n, 3]``: the last lines of a curve."""
    try:
        with curve.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 100 * LAST))
            # The first may be cut in two, or be the header; the last may not be whole
            lines = file.read().decode().split("\n")[1:-1][-LAST:]
        return np.array([line.split(",") for line in lines], dtype=float)
    except (OSError, ValueError):  # the attempt has ended
        return np.empty((0, 3))


class Board:
    """
    State of all runs.

    :param runs: all of them
    """

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        #: Those that the engine has
        self.running: list[Run] = []
        self.failed: dict[str, str] = {}
        self.n_done = sum(run.is_done for run in runs)

    def title(self, started: Collection[Progress]) -> str:
        """
        :param started: progress of those that are running and have made an attempt: a cluster may have no room for others
        :return: one line
        """
        speed = sum(progress.speed for progress in started)
        waiting = len(self.runs) - self.n_done - len(started) - len(self.failed)
        counts = f"{self.n_done} of {len(self.runs)} done, {len(started)} running, {waiting} waiting"
        return f"{counts}, {len(self.failed)} failed, {speed:,.0f} steps/s"


class View(Protocol):
    """Shows a board."""

    def update(self, board: Board) -> None:
        """
        :param board: as it is now
        """

    def say(self, line: str) -> None:
        """
        :param line: that stays
        """


class Lines(View):
    """Plain lines: what changes, and once a minute how far all is."""

    def __init__(self) -> None:
        self._attempts: dict[str, int] = {}
        self._said_at = time.monotonic()

    def update(self, board: Board) -> None:
        found = {run.name: now for run in board.running if (now := progress(run)).attempt}
        for name, now in found.items():
            before = self._attempts.setdefault(name, now.attempt)
            if before and now.attempt > before:
                self.say(f"{name}: attempt {now.attempt}, the one before was killed")
            self._attempts[name] = now.attempt
        if time.monotonic() - self._said_at > LINE_INTERVAL:
            self._said_at = time.monotonic()
            self.say(board.title(found.values()))

    def say(self, line: str) -> None:
        print(line, flush=True)


class Table(View):
    """
    A live table of the runs that are running.

    :param live: rich's display
    """

    def __init__(self, live: Any) -> None:
        self._live = live

    def update(self, board: Board) -> None:
        from rich.table import Table as RichTable

        found = [(run, now) for run in board.running if (now := progress(run)).attempt]
        title = board.title([now for _, now in found])
        columns = ("run", "step", "of", "steps/s", "last score", "attempt")
        table = RichTable(*columns, title=title, title_justify="left", expand=True)
        for run, now in found[: max(1, self._live.console.height - 6)]:
            total = run.search["trials"] if run.search else run.steps
            table.add_row(run.name, f"{now.step:,}", f"{total:,}", f"{now.speed:,.0f}", f"{now.score:.1f}", str(now.attempt))
        self._live.update(table, refresh=True)

    def say(self, line: str) -> None:
        self._live.console.print(line, markup=False, highlight=False)


@contextlib.contextmanager
def view() -> Iterator[View]:
    """
    :return: context that gives a table if there is a terminal and rich is installed, and plain lines if not
    """
    if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
        yield Lines()
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield Table(live)


def results(runs: list[Run]) -> str:
    """
    :param runs: of a suite
    :return: one line for each environment and algorithm: mean scores of its seeds; for a search, its best trial
    """
    lines: dict[str, list[float]] = {}
    searches: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run.is_done and run.search:
            manifest = json.loads((run.folder / "manifest.json").read_text())
            searches.setdefault(run.search["study_name"], []).append(manifest)
        elif run.is_done:
            scores = np.loadtxt(run.folder / "scores.csv", skiprows=1, ndmin=1)
            lines.setdefault(f"{run.env} {run.label}", []).append(float(scores.mean()))
    texts = [
        f"{name}: {np.mean(scores):.1f} over {len(scores)} seed{'s' * (len(scores) > 1)} "
        f"({', '.join(f'{score:.1f}' for score in scores)})"
        for name, scores in lines.items()
    ]
    # Workers end one after the other, and each knows the best trial until then
    bests = {name: max(of_study, key=itemgetter("best_value")) for name, of_study in searches.items()}
    return "\n".join([*texts, *(f"{name}: {best['summary']}" for name, best in bests.items())])

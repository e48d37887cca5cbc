"""Learning curve of a run, also of one that is interrupted and resumed."""

import csv
import os
import time
from contextlib import ExitStack
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from sb3_rainbow.arguments import check_integer

COLUMNS = ("step", "return", "seconds")


class EpisodeCurve(BaseCallback):
    """
    One line per episode: agent steps of the training so far, return as Monitor counts it (rewards not clipped, lost lives no
    end), seconds since the start. In a resumed training, lines after the step that it goes on from are dropped first: put it
    after the callback that resumes.

    :param path: CSV file
    :param sync_freq: agent steps after which the lines are flushed to the disk: as many as between checkpoints, so that a
        machine that is lost leaves no checkpoint that is ahead of them
    :raises ValueError: if ``sync_freq`` is less than 1
    """

    def __init__(self, path: str, sync_freq: int = 10_000) -> None:
        super().__init__()
        check_integer("sync_freq", sync_freq, 1)
        self.path = Path(path)
        self.sync_freq = sync_freq
        self._closing = ExitStack()

    def _on_training_start(self) -> None:
        lines = []
        if self.path.exists():
            with self.path.open() as file:
                # A line that was cut off when its writer was killed has no seconds
                whole = [line for line in csv.DictReader(file) if line["seconds"]]
            lines = [line for line in whole if int(line["step"]) <= self.model.num_timesteps]
        self._start = time.time() - float(lines[-1]["seconds"] if lines else 0)
        temporary = self.path.with_suffix(".writing")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        # Lines are written at once, as whole lines
        self._file = self._closing.enter_context(self.path.open("a", newline="", buffering=1))
        self._writer = csv.writer(self._file)
        self._synced_at = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._synced_at >= self.sync_freq:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = self.model.num_timesteps

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                values = (self.num_timesteps, round(float(info["episode"]["r"]), 6), round(time.time() - self._start, 2))
                self._writer.writerow(values)
        return True

    def _on_rollout_end(self) -> None:
        if self.model.num_timesteps >= self.model._total_timesteps:  # the last checkpoint follows
            self._sync()

    def _on_training_end(self) -> None:
        self._closing.close()

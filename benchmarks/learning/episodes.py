"""Callback that writes the learning curve of a run, also of one that is interrupted and resumed."""

import csv
import time
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

COLUMNS = ("step", "return", "seconds")


class EpisodeCurve(BaseCallback):
    """
    One line per episode: agent steps of the training so far, return as Monitor counts it (rewards not clipped, lost lives no
    end), seconds since the start. In a resumed training, lines after the step that it goes on from are dropped first: put it
    after the callback that resumes.

    :param path: CSV file
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)

    def _on_training_start(self) -> None:
        lines = []
        if self.path.exists():
            with self.path.open() as file:
                lines = [line for line in csv.DictReader(file) if int(line["step"]) <= self.model.num_timesteps]
        self._start = time.time() - float(lines[-1]["seconds"] if lines else 0)
        # Lines are written at once, as whole lines
        self._file = self.path.open("w", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()
        self._writer.writerows(lines)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                values = (self.num_timesteps, round(float(info["episode"]["r"]), 6), round(time.time() - self._start, 2))
                self._writer.writerow(dict(zip(COLUMNS, values, strict=True)))
        return True

    def _on_training_end(self) -> None:
        self._file.close()

"""Checkpoints during training, and going on from them."""

import os
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_rainbow.arguments import check_integer
from sb3_rainbow.checkpoint.folder import latest
from sb3_rainbow.checkpoint.state import restore, save
from sb3_rainbow.rainbow import RainbowDQN


class ResumableCheckpointCallback(BaseCallback):
    """
    Saves a checkpoint every so many steps, between two rollouts: only there is a training in a state from which it can go on
    exactly. SB3's ``CheckpointCallback`` saves in the middle of a rollout, and networks only.

    With ``resume=True``, a training that is started again with the same settings goes on where its newest checkpoint stands,
    up to the same number of steps. In RL Zoo's YAML::

        callback:
          - sb3_rainbow.checkpoint.ResumableCheckpointCallback:
              save_freq: 10000
              folder: checkpoints/{env_id}_{seed}
              resume: true

    :param save_freq: environment steps between checkpoints
    :param folder: where they are kept; ``{env_id}`` and ``{seed}`` are replaced
    :param keep: how many are kept
    :param resume: go on from the newest checkpoint in the folder, if there is one
    :param verbose: 1 to say when a checkpoint is saved or taken
    :raises ValueError: if ``save_freq`` or ``keep`` is less than 1
    """

    model: RainbowDQN

    def __init__(
        self, save_freq: int, folder: str | os.PathLike[str], keep: int = 2, resume: bool = False, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        check_integer("save_freq", save_freq, 1)
        check_integer("keep", keep, 1)
        self.save_freq = save_freq
        self.folder = folder
        self.keep = keep
        self.resume = resume
        self._saved_at = 0
        self._in_rollout = False

    @property
    def path(self) -> Path:
        """Where the checkpoints are kept."""
        names: dict[str, Any] = {"seed": self.model.seed, "env_id": "env"}
        if self.model.env is not None and (specs := self.model.env.get_attr("spec")) and specs[0] is not None:
            names["env_id"] = specs[0].id.replace("/", "-")
        return Path(str(self.folder).format(**names))

    def _on_training_start(self) -> None:
        if self.resume and latest(self.path) is not None:
            total = self.model._total_timesteps
            taken = restore(self.model, self.path)
            # As many steps as were asked for now; what is logged and annealed is relative to them
            self.model._total_timesteps = total
            self.num_timesteps = self.model.num_timesteps
            if self.verbose:
                print(f"Going on from {taken}")
        self._saved_at = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        self._in_rollout = True
        if self.model.num_timesteps - self._saved_at >= self.save_freq:
            self._save()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._in_rollout = False

    def _on_training_end(self) -> None:
        # A callback that stops training does so in the middle of a step
        if not self._in_rollout and self.model.num_timesteps > self._saved_at:
            self._save()

    def _save(self) -> None:
        path = save(self.model, self.path, self.keep)
        self._saved_at = self.model.num_timesteps
        if self.verbose:
            print(f"Saved {path}")

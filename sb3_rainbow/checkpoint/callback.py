"""Checkpoints during training, and going on from them."""

import os
import threading
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_rainbow.arguments import check_integer
from sb3_rainbow.checkpoint.folder import WRITER, latest
from sb3_rainbow.checkpoint.state import Snapshot, restore_verified, take_snapshot, write_snapshot
from sb3_rainbow.rainbow import RainbowDQN

#: A checkpoint of which no more bytes are new is copied, and written while training goes on
MOST_COPIED = 2**31


class ResumableCheckpointCallback(BaseCallback):
    """
    Saves a checkpoint every so many steps, between two rollouts: only there is a training in a state from which it can go on
    exactly. SB3's ``CheckpointCallback`` saves in the middle of a rollout, and no random generators.

    Training goes on while a checkpoint is written, unless it is very large, as the first one of a full replay buffer can
    be. If one cannot be written, training stops with that error when the next one is due, or at the end.

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
    :raises ValueError: if ``save_freq`` or ``keep`` is less than 1, ``folder`` has another name in braces, the model is no
        ``RainbowDQN``, or, at the start of a training, differs from the checkpoint that it is to go on from
    """

    model: RainbowDQN

    def __init__(
        self, save_freq: int, folder: str | os.PathLike[str], keep: int = 2, resume: bool = False, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        check_integer("save_freq", save_freq, 1)
        check_integer("keep", keep, 1)
        try:
            str(folder).format(env_id="", seed=0)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"folder={str(folder)!r}: may have {{env_id}} and {{seed}} in braces, nothing else") from error
        self.save_freq = save_freq
        self.folder = folder
        self.keep = keep
        self.resume = resume
        self._saved_at = 0
        self._in_rollout = False
        self._n_updates = 0
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def path(self) -> Path:
        """Where the checkpoints are kept."""
        names: dict[str, Any] = {"seed": self.model.seed, "env_id": "env"}
        # Only if it is wanted: a spec comes from a worker as a pickle, which not every one can be
        if "{env_id" in str(self.folder) and self.model.env is not None and (spec := self.model.env.get_attr("spec", 0)[0]):
            names["env_id"] = spec.id.replace("/", "-")
        return Path(str(self.folder).format(**names))

    def _init_callback(self) -> None:
        if not isinstance(self.model, RainbowDQN):
            raise ValueError(f"model={self.model}: ResumableCheckpointCallback saves RainbowDQN alone")

    def _on_training_start(self) -> None:
        self._finish()  # what an interrupted training had begun to write
        taken = latest(self.path) if self.resume else None
        if taken is not None:
            total = self.model._total_timesteps
            restore_verified(self.model, taken)
            # As many steps as were asked for now; what is logged and annealed is relative to them
            self.model._total_timesteps = total
            self.num_timesteps = self.model._num_timesteps_at_start = self.model.num_timesteps
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
        self._n_updates = self.model._n_updates

    def _on_training_end(self) -> None:
        # RL Zoo calls this after whatever error, that of a first reset among them
        if hasattr(self, "model") and self._is_between_rollouts() and self.model.num_timesteps > self._saved_at:
            self._save()
        self._finish()

    def _is_between_rollouts(self) -> bool:
        """Not in the middle of a step, where callbacks stop trainings, nor of the updates after a rollout."""
        model = self.model
        updates = model.num_timesteps > model.learning_starts and model.gradient_steps != 0
        return not self._in_rollout and (model._n_updates > self._n_updates or not updates)

    def _save(self) -> None:
        self._finish()
        WRITER.acquire()  # released by _write
        try:
            snapshot, path = take_snapshot(self.model), self.path
            copied = snapshot.copied(path, most=MOST_COPIED)
        except BaseException:
            WRITER.release()
            raise
        self._saved_at = self.model.num_timesteps
        if copied is not None:
            self._writer = threading.Thread(target=self._write, args=(copied, path))
            try:
                self._writer.start()
                return
            except RuntimeError:  # there may be no thread left
                self._writer = None
        self._write(snapshot, path)
        self._finish()

    def _write(self, snapshot: Snapshot, path: Path) -> None:
        try:
            written = write_snapshot(snapshot, path, self.keep)
        except Exception as error:
            self._error = error
        else:
            if self.verbose:
                print(f"Saved {written}")
        finally:
            WRITER.release()

    def _finish(self) -> None:
        """Wait for the checkpoint that is being written, and raise its error if it had one."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None:
            raise error

"""
Checkpoints from which training goes on as if it had never stopped.

``save(model, folder)`` between two rollouts, or ``ResumableCheckpointCallback(save_freq, folder)``, which does so;
then ``load(folder, env)`` and ``learn`` the rest. Loading runs no code of the file's, unlike SB3's zip and pickle.
"""

from sb3_rainbow.checkpoint.callback import ResumableCheckpointCallback
from sb3_rainbow.checkpoint.folder import CorruptCheckpointError, latest
from sb3_rainbow.checkpoint.state import load, restore, save

__all__ = ["CorruptCheckpointError", "ResumableCheckpointCallback", "latest", "load", "restore", "save"]

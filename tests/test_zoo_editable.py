"""RL Zoo after an editable install."""

from zoo_acceptance import *  # noqa: F403

KIND = "editable"

"""RL Zoo after a wheel was installed."""

from zoo_acceptance import *  # noqa: F403

KIND = "wheel"

"""Callbacks that suites.yml names as the runs in results/ did, from when they were no part of the package."""

from sb3_rainbow.callbacks import FewerSteps as FewerSteps

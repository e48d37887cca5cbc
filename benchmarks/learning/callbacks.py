"""``callbacks.FewerSteps`` was here before it was in the package: settings of done runs name it so, and must not change."""

from sb3_rainbow.callbacks import FewerSteps as FewerSteps

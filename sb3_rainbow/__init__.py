"""Rainbow DQN for Stable-Baselines3: six parts, each with its own switch; five are on by default."""

from importlib.metadata import version

import _sb3_rainbow_startup
from sb3_rainbow.policies import CnnPolicy, DataEfficientCnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_rainbow.presets import preset
from sb3_rainbow.rainbow import RainbowDQN
from sb3_rainbow.replay.buffer import PrioritizedNStepReplayBuffer

__version__ = version("sb3-rainbow")

# Where no start-up line was read: `pip install --target`, `python -S`, a notebook that was running during the install
_sb3_rainbow_startup.install()

__all__ = [
    "CnnPolicy",
    "DataEfficientCnnPolicy",
    "MlpPolicy",
    "MultiInputPolicy",
    "PrioritizedNStepReplayBuffer",
    "RainbowDQN",
    "__version__",
    "preset",
]

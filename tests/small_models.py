"""Small models of several tests."""

from typing import Any

from stable_baselines3.common.envs import FakeImageEnv

from sb3_rainbow import RainbowDQN

#: Arguments without any part: SB3's DQN
OFF: dict[str, Any] = {"n_steps": 1, "double_q": False, "dueling": False, "noisy": False, "prioritized": False}


def filled(policy: str, **arguments: Any) -> RainbowDQN:
    """With 60 transitions in its replay, of pictures or of CartPole, before its first update."""
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=4, discrete=True, channel_first=True)
    env.observation_space.seed(0)  # it draws its pictures from there, and a seed of the model does not reach it
    settings = {"buffer_size": 200, "learning_starts": 60, "train_freq": 60, "seed": 0, "learning_rate": 1e-3}
    return RainbowDQN(policy, env if policy == "CnnPolicy" else "CartPole-v1", **(settings | arguments)).learn(60)

"""Callbacks that suites.yml names."""

from stable_baselines3.common.callbacks import BaseCallback

from sb3_rainbow import RainbowDQN
from sb3_rainbow.arguments import check_integer, check_number


class FewerSteps(BaseCallback):
    """
    Shorter n-step returns from some point of the training on: many steps learn sooner, few depend less on what older policies
    did next. Returns are made when a batch is sampled, so that what is stored serves both.

    :param n_steps: longest window from then on
    :param after: part of the training, from 0 to 1
    :raises ValueError: if an argument is out of range
    """

    model: RainbowDQN

    def __init__(self, n_steps: int, after: float) -> None:
        check_integer("n_steps", n_steps, 1)
        check_number("after", after, 0, 1)
        super().__init__()
        self.n_steps, self.after = n_steps, after

    def _on_rollout_start(self) -> None:
        # Anew each time: a resumed training begins with the model's own
        if self.model.num_timesteps >= self.after * self.model._total_timesteps:
            self.model.replay_buffer.n_steps = self.n_steps  # type: ignore[union-attr]

    def _on_step(self) -> bool:
        return True

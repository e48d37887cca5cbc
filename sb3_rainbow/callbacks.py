"""Callbacks for the training, beside SB3's."""

from stable_baselines3.common.callbacks import BaseCallback

from sb3_rainbow.arguments import check_integer, check_number
from sb3_rainbow.rainbow import RainbowDQN


class FewerSteps(BaseCallback):
    """
    Shorter n-step returns from some point of the training on: many steps learn sooner, few depend less on what older policies
    did next. Returns are made when a batch is sampled, so that what is stored serves both, and is saved with the replay's own
    ``n_steps``.

    :param n_steps: longest window from then on, until the training ends
    :param after: part of the training, from 0 to 1
    :raises ValueError: if an argument is out of range; at the start of a training, if the replay buffer is none of ours, or
        has fewer steps
    """

    model: RainbowDQN

    def __init__(self, n_steps: int, after: float) -> None:
        check_integer("n_steps", n_steps, 1)
        check_number("after", after, 0, 1)
        super().__init__()
        self.n_steps, self.after = n_steps, after

    def _init_callback(self) -> None:
        if not hasattr(self.model.replay_buffer, "longest_window"):
            name = type(self.model.replay_buffer).__name__
            raise ValueError(f"n_steps={self.n_steps}: needs a PrioritizedNStepReplayBuffer, the model has a {name}")
        most = self.model.replay_buffer.n_steps  # type: ignore[union-attr]
        if self.n_steps > most:
            raise ValueError(f"n_steps={self.n_steps}: must be at most {most}, the replay buffer's")

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self.after * self.model._total_timesteps:
            self._set_longest_window(self.n_steps)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if hasattr(self, "model"):  # RL Zoo calls this after whatever error, that of a first reset among them
            self._set_longest_window(None)

    def _set_longest_window(self, n_steps: int | None) -> None:
        self.model.replay_buffer.longest_window = n_steps  # type: ignore[union-attr]

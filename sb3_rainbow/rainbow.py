"""RainbowDQN: SB3's DQN with the parts of Rainbow."""

import io
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn.dqn import DQN

from sb3_rainbow import checks, losses, policies
from sb3_rainbow.cuda_graph import CudaGraph, places, step_on_device
from sb3_rainbow.policies import CnnPolicy, DataEfficientCnnPolicy, MlpPolicy, MultiInputPolicy, NoisyQNetwork, RainbowPolicy
from sb3_rainbow.process import flush_denormals, keep_freed_memory
from sb3_rainbow.replay.buffer import PrioritizedNStepReplayBuffer
from sb3_rainbow.type_aliases import Samples

SelfRainbowDQN = TypeVar("SelfRainbowDQN", bound="RainbowDQN")

#: Of an update: the batch, its temporal-difference errors; and the loss, the mean weight, 1 if all are finite
Update = tuple[Samples, th.Tensor, th.Tensor]
#: Added to every priority, so that no transition is lost for ever (PER section 3.3)
PRIORITY_EPS = 1e-6


class RainbowDQN(DQN):
    r"""
    Deep Q-Network with the parts of Rainbow. Five of six are on by default: double Q-learning, dueling streams, prioritized
    replay, n-step returns and noisy layers. The sixth, the distribution of the return (C51), comes with ``n_atoms=51``.

    Each part can be switched off alone. With all of them off (``n_steps=1, double_q=False, dueling=False, noisy=False,
    prioritized=False``, and ``n_atoms=1``) it is SB3's DQN, bit for bit; of several environments each explores by itself.

    Papers: https://arxiv.org/abs/1710.02298 (Rainbow), https://arxiv.org/abs/1509.06461 (double Q-learning),
    https://arxiv.org/abs/1511.06581 (dueling), https://arxiv.org/abs/1511.05952 (PER), https://arxiv.org/abs/1706.10295
    (NoisyNet), https://arxiv.org/abs/1707.06887 (C51), https://arxiv.org/abs/1710.10044 (QR-DQN)

    Defaults are those of SB3's DQN, but for Adam: its epsilon is 1.5e-4 (Rainbow, table 1), and it is fused, unless every
    part is off or ``policy_kwargs`` sets ``optimizer_class``, or ``eps`` and ``fused`` of ``optimizer_kwargs``.
    Departure: DQN's epsilon-greedy exploration goes on beside the noise; the paper's Rainbow has none
    (``exploration_initial_eps=exploration_final_eps=0``).

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"DataEfficientCnnPolicy"``, ``"MultiInputPolicy"``, or a subclass of
        ``RainbowPolicy``
    :param env: environment to learn from, or its registered name
    :param learning_rate: learning rate, or a function of the remaining progress (from 1 to 0)
    :param buffer_size: most transitions kept in the replay buffer
    :param learning_starts: environment steps before learning starts; actions are random until then
    :param batch_size: transitions in an update
    :param tau: coefficient of the soft update of the target network; 1 copies it
    :param gamma: discount of one step; if you change it later, change ``replay_buffer.gamma`` too
    :param train_freq: environment steps between trainings, or a tuple like ``(2, "episode")``
    :param gradient_steps: updates in each training; -1 for as many as there were environment steps
    :param replay_buffer_class: None for ``PrioritizedNStepReplayBuffer``, or SB3's own with ``prioritized=False, n_steps=1``.
        Another decides itself about n-step returns and priorities (``update_priorities``, and ``leaf_indices`` of its samples)
    :param replay_buffer_kwargs: keyword arguments for the replay buffer
    :param optimize_memory_usage: only for SB3's own buffers; ours always stores frames once
    :param n_steps: longest window of the n-step return; 1 for none
    :param target_update_interval: environment steps between updates of the target network
    :param exploration_fraction: share of the training during which epsilon falls
    :param exploration_initial_eps: initial probability of a random action, tossed for each environment by itself
    :param exploration_final_eps: final probability of a random action
    :param max_grad_norm: largest norm of the gradient
    :param stats_window_size: episodes over which the logged statistics are averaged
    :param tensorboard_log: folder for TensorBoard; None for no log
    :param policy_kwargs: keyword arguments for the policy
    :param verbose: 0 for no output, 1 for information, 2 for debugging
    :param seed: seed of all random generators, the replay buffer's too
    :param device: device of the networks
    :param double_q: the online network chooses the action whose value the target network gives
    :param dueling: streams for value and advantage
    :param noisy: ``"factorised"`` or ``"independent"`` noise in the fully connected layers, or False. The noise is drawn anew
        for every step, of all environments together, and up to three times for every update. ``predict`` can do without
    :param sigma0: initial noise; None for 0.5 (factorised) or 0.017 (independent)
    :param prioritized: sample by priority
    :param alpha: priority exponent, in [0, 1]
    :param beta0: initial exponent of the importance weights, in [0, 1]; it grows to 1 over the training
    :param n_atoms: atoms of each action's distribution of the return; 1 for its expected value alone
    :param v_min: smallest return that a distribution can tell; smaller ones count as it. Discounted, as learned from: after
        reward clipping and normalisation. None, with ``v_max=None``: instead of the probabilities of ``n_atoms`` returns,
        ``n_atoms`` quantiles are learned (QR-DQN), for which no range must be known
    :param v_max: largest return that a distribution can tell
    :param storage_device: where our replay buffer is: ``"cpu"``, ``"cuda"``, or ``"auto"``: with the networks if it fits
    :param amp: ``"bf16"`` for the networks of an update in bfloat16, all else in float32: a quarter faster, if the CPU has it
    :param compile: compile the networks of an update by ``torch.compile``: updates 7 to 12% shorter. Needs a C++ compiler
    :param cuda_graph: on a GPU, start all kernels of an update at once, from the draw of the batch to its priorities. Needs
        ``storage_device="cuda"``. Without effect on the CPU, and with VecNormalize, which normalises there
    :param _init_setup_model: whether to build the networks at once
    :raises ValueError: if an argument is out of range; it names the argument and the value
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "DataEfficientCnnPolicy": DataEfficientCnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: RainbowPolicy
    q_net: NoisyQNetwork
    q_net_target: NoisyQNetwork

    def __init__(
        self,
        policy: str | type[RainbowPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 32,
        tau: float = 1.0,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 4,
        gradient_steps: int = 1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 3,
        target_update_interval: int = 10000,
        exploration_fraction: float = 0.1,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        max_grad_norm: float = 10,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        double_q: bool = True,
        dueling: bool = True,
        noisy: str | bool = "factorised",
        sigma0: float | None = None,
        prioritized: bool = True,
        alpha: float = 0.5,
        beta0: float = 0.4,
        n_atoms: int = 1,
        v_min: float | None = -10.0,
        v_max: float | None = 10.0,
        storage_device: str = "cpu",
        amp: str | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
        _init_setup_model: bool = True,
    ) -> None:
        checks.check_arguments(locals())
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            target_update_interval=target_update_interval,
            exploration_fraction=exploration_fraction,
            exploration_initial_eps=exploration_initial_eps,
            exploration_final_eps=exploration_final_eps,
            max_grad_norm=max_grad_norm,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.double_q, self.dueling, self.noisy, self.sigma0 = double_q, dueling, noisy, sigma0
        self.n_steps, self.prioritized, self.alpha, self.beta0 = n_steps, prioritized, alpha, beta0
        self.n_atoms, self.v_min, self.v_max = n_atoms, v_min, v_max
        self.storage_device, self.amp, self.compile, self.cuda_graph = storage_device, amp, compile, cuda_graph
        self._graph: CudaGraph | None = None
        self._built_with: dict[str, Any] = {}
        if _init_setup_model:
            self._setup_model()

    @property
    def beta(self) -> float:
        """Exponent of the importance weights: from ``beta0`` to 1, linear in the progress of training (PER section 3.4)."""
        return min(1.0, self.beta0 + (1 - self.beta0) * (1 - self._current_progress_remaining))

    def _setup_model(self) -> None:
        # Also after `load`, where every attribute may have been given anew
        checks.check_arguments(self.__dict__)
        checks.check_built_with(self)
        checks.check_amp(self.amp, self.device)
        if not issubclass(self.policy_class, RainbowPolicy):
            names = ", ".join(map(repr, self.policy_aliases))
            raise ValueError(f"policy={self.policy_class}: must be one of {names}, or a RainbowPolicy")
        given = self.n_steps, self.policy_kwargs, self.replay_buffer_class, self.replay_buffer_kwargs
        # SB3 builds from its own attributes: lend it ours. It would refuse, or warn about, n_steps with a buffer class
        self.policy_kwargs, self.replay_buffer_kwargs = self._parts_of_policy(), self.replay_buffer_kwargs or {}
        if self.replay_buffer_class is None and (self.prioritized or self.n_steps > 1):
            self.replay_buffer_class = PrioritizedNStepReplayBuffer
        if issubclass(self.replay_buffer_class or ReplayBuffer, PrioritizedNStepReplayBuffer):
            self.replay_buffer_kwargs = self._parts_of_replay() | self.replay_buffer_kwargs
        else:
            checks.check_other_replay(self)
        self.n_steps = 1
        keep_freed_memory()
        super()._setup_model()
        if self.compile:
            for q_net in (self.q_net, self.q_net_target):
                q_net.compile()
        self.n_steps, self.policy_kwargs, self.replay_buffer_class, self.replay_buffer_kwargs = given
        self.sigma0 = self.policy.sigma0
        self._built_with = {name: getattr(self, name) for name in checks.PARTS_OF_POLICY}

    def _parts_of_policy(self) -> dict[str, Any]:
        parts: dict[str, Any] = {name: getattr(self, name) for name in checks.PARTS_OF_POLICY} | self.policy_kwargs
        any_part = max(self.n_steps, self.n_atoms) > 1 or self.double_q or self.dueling or self.noisy or self.prioritized
        if any_part and "optimizer_class" not in parts:
            parts["optimizer_kwargs"] = policies.adam_kwargs(parts.get("optimizer_kwargs"))
        return parts

    def _parts_of_replay(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("n_steps", "gamma", "storage_device", "seed")}
        return own | {"alpha": self.alpha if self.prioritized else 0.0}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_graph"]

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed python, NumPy, torch, the environments, the action space and the replay buffer.

        :param seed: from 0 to 2**32 - 1; None changes nothing
        """
        super().set_random_seed(None if seed is None else int(seed))  # Python's own generator takes no NumPy integers
        if seed is not None and isinstance(self.replay_buffer, PrioritizedNStepReplayBuffer):
            self.replay_buffer.seed(seed)

    @flush_denormals()
    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """
        Sample the replay buffer and do updates. Needs no environment.

        :param gradient_steps: number of updates
        :param batch_size: transitions in each
        :raises ValueError: if the replay is empty, or a loss or a gradient is not finite; it names the first quantity that is
            not, and the parameters are as they were before that update
        """
        self._logger = getattr(self, "_logger", None) or configure_logger()  # None before the first learn()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        update = self._update_by_graph if self._uses_graph() else self._update
        means = []
        for _ in range(gradient_steps):
            replay_data, td_errors, results = update(batch_size)
            loss, weight, finite = results.tolist()
            if not finite:
                self.policy.optimizer.zero_grad()
                raise ValueError(checks.name_non_finite(replay_data, td_errors))
            means.append((loss, weight))

        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, mean in zip(("loss", "weight_mean"), np.reshape(means, (-1, 2)).mean(axis=0), strict=True):
            self.logger.record(f"train/{name}", mean)

    def _update(self, batch_size: int) -> Update:
        buffer: Any = self.replay_buffer
        beta = {"beta": self.beta} if isinstance(buffer, PrioritizedNStepReplayBuffer) else {}
        replay_data = buffer.sample(batch_size, env=self._vec_normalize_env, **beta)
        td_errors, grad_norm, results = self._backward(replay_data)
        if results[2]:
            # As clip_grad_norm_, whose factor is max_grad_norm / (grad_norm + 1e-6), but at most 1: then nothing is multiplied
            if grad_norm + 1e-6 > self.max_grad_norm:
                th.nn.utils.clip_grads_with_norm_(self.policy.parameters(), self.max_grad_norm, grad_norm)
            self.policy.optimizer.step()
            self._update_priorities(replay_data, td_errors)
        return replay_data, td_errors, results

    def _update_on_device(self, batch_size: int, beta: th.Tensor, learning_rate: th.Tensor) -> Update:
        """The same update, of which nothing is read back from the device."""
        buffer: Any = self.replay_buffer
        replay_data = buffer.sample(batch_size, None, beta, check=False)
        td_errors, grad_norm, results = self._backward(replay_data)
        th.nn.utils.clip_grads_with_norm_(self.policy.parameters(), self.max_grad_norm, grad_norm)
        step_on_device(self.policy.optimizer, learning_rate, skip=results[2] == 0)
        self._update_priorities(replay_data, td_errors / results[2], check=False)  # over 0, they change nothing
        return replay_data, td_errors, results

    def _uses_graph(self) -> bool:
        uses = self.cuda_graph and self.device.type == "cuda" and self._vec_normalize_env is None
        if uses:
            checks.check_cuda_graph(self.replay_buffer, self.policy.optimizer)
        return uses

    def _update_by_graph(self, batch_size: int) -> Update:
        buffer: Any = self.replay_buffer
        buffer.prepare()
        self._graph = self._graph or CudaGraph(self.device)
        # What is no argument is part of the kernels: if it changes, they are captured anew
        own = batch_size, self.max_grad_norm, self.double_q, self.amp, self.prioritized
        sampling = buffer.longest_window, buffer.n_steps, buffer.gamma, buffer.alpha
        key = *own, *sampling, places(self.policy, self.policy.optimizer, buffer.arrays)
        rate = self.policy.optimizer.param_groups[0]["lr"]
        update = partial(self._update_on_device, batch_size)
        return self._graph.run(update, key, buffer.generator, beta=self.beta, learning_rate=rate)

    def _backward(self, replay_data: Samples) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Temporal-difference errors, norm of the gradient; and the loss, the mean weight, 1 if all are finite."""
        weights = th.as_tensor(getattr(replay_data, "weights", 1.0), device=self.device).reshape(-1, 1)
        td_errors = self.td_errors(replay_data)
        loss = losses.weighted_mean(self.q_net.head.loss(td_errors), weights)
        self.policy.optimizer.zero_grad()
        loss.backward()
        grad_norm = th.nn.utils.get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None])
        # Distributions hide an infinite reward: it counts as the end of their support
        finite = loss.isfinite() & grad_norm.isfinite() & replay_data.rewards.isfinite().all()
        return td_errors.detach(), grad_norm, th.stack((loss.detach(), weights.mean(), finite.float()))

    def _update_priorities(self, replay_data: Any, td_errors: th.Tensor, **check: bool) -> None:
        buffer: Any = self.replay_buffer
        if hasattr(buffer, "update_priorities") and (self.prioritized or getattr(buffer, "alpha", 0.0) > 0):
            priorities = td_errors.abs() + PRIORITY_EPS  # PER section 3.3, proportional prioritization
            buffer.update_priorities(replay_data.leaf_indices, priorities, **check)

    def td_errors(self, replay_data: Samples) -> th.Tensor:
        r"""
        :math:`\delta_i = y_i - q_\theta(s_i, a_i)`, the target without gradient; with distributions, what their heads say (KL
        divergences, quantile losses). New noise is drawn for each forward pass (NoisyNet section 3): of the online network on
        the next observations, where it chooses the action, of the target network there, and of the online one at the start.

        :param replay_data: a batch, as sampled from any of SB3's replay buffers or ours
        :return: ``[batch, 1]`` float32, differentiable in the online network's parameters until noise is drawn again
        """
        # Without n-step returns, the discount is that of one step
        discounts = getattr(replay_data, "discounts", None)
        discounts = self.gamma if discounts is None else th.as_tensor(discounts, device=self.device).reshape(-1, 1)
        head = self.q_net.head
        with th.no_grad():
            choosing = self._outputs(self.q_net, replay_data.next_observations, relative=True) if self.double_q else None
            next_outputs = self._outputs(self.q_net_target, replay_data.next_observations)
            next_actions = head(next_outputs if choosing is None else choosing).argmax(dim=1)
            next_outputs = losses.of_actions(next_outputs, next_actions)
            targets = head.targets(replay_data.rewards, replay_data.dones, discounts, next_outputs)
        outputs = self._outputs(self.q_net, replay_data.observations)
        return head.td_errors(targets, losses.of_actions(outputs, replay_data.actions.long().squeeze(1)))

    def _outputs(self, q_net: NoisyQNetwork, observations: Any, relative: bool = False) -> th.Tensor:
        """Under new noise, ``[batch, n_actions, n_atoms]`` float32."""
        q_net.reset_noise()
        q_net.train_features(th.is_grad_enabled())
        with th.autocast(self.device.type, th.bfloat16, enabled=self.amp == "bf16"):
            return q_net(observations, deterministic=False, relative=relative, by_atom=True).float()

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions for observations. Without ``deterministic`` they are greedy under newly drawn noise, and each environment's is
        random with probability ``exploration_rate``; so does RL Zoo evaluate on Atari.

        :param observation: one, ``[*shape]``, or one for each environment, ``[n_envs, *shape]``
        :param state: not used
        :param episode_start: not used
        :param deterministic: greedy in the mean weights; draws no random number
        :return: actions, int64: ``[]`` or ``[n_envs]``; and ``state``
        """
        if deterministic:
            return self.policy.predict(observation, state, episode_start, deterministic=True)
        if isinstance(observation, Mapping):
            observation = {key: np.asarray(entry) for key, entry in observation.items()}
        elif not isinstance(observation, np.ndarray):
            self.policy.predict(observation, deterministic=True)  # SB3's error, if it is no observation at all
            observation = np.asarray(observation)
        # SB3's own sources of random numbers: with one environment these are the draws of its DQN
        vectorized = self.policy.is_vectorized_observation(observation)
        first = next(iter(observation.values())) if isinstance(observation, Mapping) else observation
        n_envs = len(first) if vectorized else 1
        explore = np.random.rand(n_envs) < self.exploration_rate  # noqa: NPY002
        actions = np.zeros(n_envs, dtype=np.int64)
        if not explore.all():
            actions[:] = self.policy.predict(observation, state, episode_start, deterministic=False)[0]
        actions[explore] = [self.action_space.sample() for _ in range(explore.sum())]
        return actions if vectorized else actions.reshape(()), state

    def learn(
        self: SelfRainbowDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "RainbowDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRainbowDQN:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        self._uses_graph()  # what is wrong with that is to be said at once
        buffer: Any = self.replay_buffer
        if ours := isinstance(buffer, PrioritizedNStepReplayBuffer):
            buffer.longest_window = None  # as an interrupted training may have left it
            if reset_num_timesteps or self._last_obs is None:
                buffer.truncate_last_trajectory()  # the environments are about to be reset
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        if ours:
            self.logger.record("replay/size_gib", buffer.size_gib)
        return result

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        """
        SB3's. A callback or an error may end it between a step and its storing: with our replay, the step at which a callback
        stops is finished, and after an error the next rollout resets the environments.

        :param env: SB3's
        :param callback: SB3's
        :param args: SB3's
        :param kwargs: SB3's
        :return: what was collected
        """
        ours = isinstance(self.replay_buffer, PrioritizedNStepReplayBuffer)
        try:
            rollout = super().collect_rollouts(env, callback, *args, **kwargs)
            if ours and not rollout.continue_training:
                step = [callback.locals[name] for name in ("buffer_actions", "new_obs", "rewards", "dones", "infos")]
                self._update_info_buffer(step[-1], step[-2])
                self._store_transition(callback.locals["replay_buffer"], *step)
                self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
                self._on_step()
            return rollout
        except BaseException:
            self._last_obs = None if ours else self._last_obs
            raise

    def dump_logs(self) -> None:
        """Write the log: SB3's, and beta, the mean noise and the largest priority."""
        if isinstance(self.replay_buffer, PrioritizedNStepReplayBuffer) and self.replay_buffer.alpha > 0:
            self.logger.record("train/beta", self.beta)
            self.logger.record("train/priority_max", self.replay_buffer.max_priority)
        if self.noisy:
            self.logger.record("train/noise_sigma", self.q_net.mean_sigma())
        super().dump_logs()

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer to ``storage_device`` from a pickle, which can run any code: load only files that you trust.

        :param path: file that ``save_replay_buffer`` wrote; for a moment, what it holds is in memory twice
        :param truncate_last_traj: close the episodes that were running when it was saved
        :raises ValueError: if it is of another class, was made for other spaces, another number of environments, or other
            settings; it names both values, and the model keeps its own buffer, as it does after any other error
        """
        current: Any = self.replay_buffer
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            checks.check_loaded(self.replay_buffer, current, self)
            buffer: Any = self.replay_buffer
            ours = isinstance(buffer, PrioritizedNStepReplayBuffer)
            if ours and current is not None and buffer.storage_device != current.storage_device:
                held, buffer.storage_device = buffer.state(), current.storage_device
                buffer.load_state(held)
        except BaseException as error:
            self.replay_buffer = current
            if isinstance(error, AssertionError):
                raise ValueError(f"path={path!r}: {error}") from error
            raise
        if truncate_last_traj and ours:
            buffer.truncate_last_trajectory()

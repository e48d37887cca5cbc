"""
Training loops behind one small interface, for ``bench_training.py``. A peer's library is imported when the peer is made.

All play BreakoutNoFrameskip-v4 in SB3's wrappers, act greedily (under noise, if they have any), and do one update of a batch
of 32 for every 4 agent steps, from a replay of 10,000 transitions.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import torch as th
from bench_update import NaiveNetwork, NaiveNoisyLinear
from replay_peers import ALPHA, BETA, GAMMA, N_STEPS, Notebook
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecTransposeImage
from torch import nn
from torch.nn import functional as F

from sb3_rainbow import RainbowDQN
from sb3_rainbow.envs import AtariVecEnv

GAME = "BreakoutNoFrameskip-v4"
CAPACITY, WARM_UP, BATCH_SIZE, UPDATE_EVERY, TARGET_EVERY = 10_000, 1_000, 32, 4, 2_000
#: What a loop's time is split into
PARTS = ("act", "env", "add", "train")

gym.register_envs(ale_py)


class Contender:
    """A training that is under way."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def advance(self, steps: int) -> int:
        """Train for some agent steps, of all environments together, and say how many there were."""
        raise NotImplementedError

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to one of ``seconds``."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            self.seconds[part] += time.perf_counter() - start
            return result

        return call


class SB3Like(Contender):
    """An algorithm of SB3's kind."""

    def __init__(self, algorithm: type[OffPolicyAlgorithm], n_envs: int = 1, native: bool = False, **arguments: Any) -> None:
        super().__init__()
        env: VecEnv
        if native:
            env = make_atari_env(GAME, n_envs, seed=0, vec_env_cls=AtariVecEnv, vec_env_kwargs={"n_stack": 4})
        else:
            env = VecFrameStack(make_atari_env(GAME, n_envs, seed=0), 4)
        self.model: Any = algorithm(
            "CnnPolicy",
            env,
            buffer_size=CAPACITY,
            learning_starts=WARM_UP,
            batch_size=BATCH_SIZE,
            train_freq=UPDATE_EVERY,
            gradient_steps=n_envs,  # train_freq counts the steps of each environment
            target_update_interval=TARGET_EVERY,
            exploration_initial_eps=0.01,
            exploration_final_eps=0.01,
            seed=0,
            **arguments,
        )
        model = self.model
        model._sample_action = self.timed("act", model._sample_action)
        model._store_transition = self.timed("add", model._store_transition)
        model.train = self.timed("train", model.train)
        model.env.step = self.timed("env", model.env.step)

    def advance(self, steps: int) -> int:
        before = self.model.num_timesteps
        self.model.learn(steps, reset_num_timesteps=False, log_interval=None)
        return int(self.model.num_timesteps - before)  # more where several environments make whole rollouts


class SingleGame(Contender):
    """A loop over one environment; observations are ``[4, 84, 84]`` uint8."""

    def __init__(self) -> None:
        super().__init__()
        th.manual_seed(0)
        self.env = VecTransposeImage(VecFrameStack(make_atari_env(GAME, 1, seed=0, vec_env_cls=DummyVecEnv), 4))
        self.obs = self.env.reset()[0]
        self.n_actions = int(self.env.action_space.n)
        self.t = 0
        self.act, self.step = self.timed("act", self._act), self.timed("env", self._step)
        self.add, self.train = self.timed("add", self._add), self.timed("train", self._train)

    def advance(self, steps: int) -> int:
        for _ in range(steps):
            action = int(self.act(self.obs))
            obs, reward, done, truncated = self.step(action)
            next_obs = obs if not done else self.last
            self.add(self.obs, action, reward, next_obs, done, truncated)
            self.obs = obs
            self.t += 1
            if self.t > WARM_UP and self.t % UPDATE_EVERY == 0:
                self.train()
        return steps

    def _step(self, action: int) -> tuple[np.ndarray, float, bool, bool]:
        obs, rewards, dones, infos = self.env.step(np.array([action]))
        self.last = infos[0].get("terminal_observation")
        return obs[0], float(rewards[0]), bool(dones[0]), bool(infos[0]["TimeLimit.truncated"])

    def _act(self, obs: np.ndarray) -> int:
        raise NotImplementedError

    def _add(self, obs: np.ndarray, action: int, reward: float, next_obs: np.ndarray, done: bool, truncated: bool) -> None:
        raise NotImplementedError

    def _train(self) -> None:
        raise NotImplementedError


class IndependentNoisyLinear(NaiveNoisyLinear):
    """Noise of every weight drawn by itself, as in the notebook."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        for sigma in (self.weight_sigma, self.bias_sigma):
            nn.init.constant_(sigma, 0.017)

    def reset_noise(self) -> None:
        """Draw anew."""
        self.weight_epsilon.normal_()
        self.bias_epsilon.normal_()


class NotebookLoop(SingleGame):
    """The notebook's loop: all noise drawn anew for every action, O(n) draws, plain Adam, targets copied."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target = (NaiveNetwork(self.n_actions, IndependentNoisyLinear) for _ in range(2))
        self.optimizer = th.optim.Adam(self.online.parameters(), lr=2.5e-4)
        self.buffer = Notebook(CAPACITY)
        self.recent: deque[Any] = deque(maxlen=N_STEPS)

    def _act(self, obs: np.ndarray) -> int:
        with th.no_grad():
            return int(self.online(th.tensor(obs, dtype=th.float32)[None]).argmax())

    def _add(self, obs: np.ndarray, action: int, reward: float, next_obs: np.ndarray, done: bool, truncated: bool) -> None:
        self.recent.append((obs, action, reward))
        if len(self.recent) == N_STEPS or done:
            total = sum(GAMMA**i * step[2] for i, step in enumerate(self.recent))
            first = self.recent[0]
            self.buffer.add(first[0][None], next_obs[None], [first[1]], [total], [done])
        if done:
            self.recent.clear()

    def _train(self) -> None:
        self.buffer.sample(BATCH_SIZE)
        obs, next_obs, others, weights = self.buffer.batch
        obs, next_obs = obs.float(), next_obs.float()
        with th.no_grad():
            actions = self.online(next_obs).argmax(dim=1, keepdim=True)
            values = self.target(next_obs).gather(1, actions)[:, 0]
            targets = others[:, 1] + GAMMA**N_STEPS * values * (1 - others[:, 2])
        self.optimizer.zero_grad()
        q_values = self.online(obs).gather(1, others[:, :1].long())[:, 0]
        loss = (weights * F.huber_loss(q_values, targets, reduction="none")).mean()
        loss.backward()
        self.optimizer.step()
        loss.item()
        self.buffer.update((targets - q_values).detach().abs().numpy() + 1e-6)
        if self.t % TARGET_EVERY == 0:
            self.target.load_state_dict(self.online.state_dict())


class PFRLRainbow(SingleGame):
    """PFRL's Rainbow, set up as in its examples."""

    def __init__(self) -> None:
        super().__init__()
        import pfrl

        network = pfrl.q_functions.DistributionalDuelingDQN(self.n_actions, 51, -10, 10)
        pfrl.nn.to_factorized_noisy(network, sigma_scale=0.5)
        buffer = pfrl.replay_buffers.PrioritizedReplayBuffer(
            CAPACITY, alpha=ALPHA, beta0=BETA, betasteps=10**6, num_steps=N_STEPS, normalize_by_max="memory"
        )
        self.agent = pfrl.agents.CategoricalDoubleDQN(
            network,
            th.optim.Adam(network.parameters(), 6.25e-5, eps=1.5e-4),
            buffer,
            gpu=None,
            gamma=GAMMA,
            explorer=pfrl.explorers.Greedy(),
            minibatch_size=BATCH_SIZE,
            replay_start_size=WARM_UP,
            target_update_interval=TARGET_EVERY,
            update_interval=UPDATE_EVERY,
            batch_accumulator="mean",
            phi=lambda obs: np.asarray(obs, dtype=np.float32) / 255,
        )
        self.add = self.timed("train", self._add)  # both in one call

    def _act(self, obs: np.ndarray) -> int:
        return int(self.agent.act(obs))

    def _add(self, obs: np.ndarray, action: int, reward: float, next_obs: np.ndarray, done: bool, truncated: bool) -> None:
        self.agent.observe(next_obs, reward, done and not truncated, truncated)

    def _train(self) -> None:
        pass


class TianshouRainbow(SingleGame):
    """Tianshou's Rainbow with its own network, without its collector."""

    def __init__(self) -> None:
        super().__init__()
        from tianshou.algorithm.modelfree.c51 import C51Policy
        from tianshou.algorithm.modelfree.rainbow import RainbowDQN as TianshouRainbowDQN
        from tianshou.algorithm.optim import AdamOptimizerFactory
        from tianshou.data import PrioritizedReplayBuffer
        from tianshou.env.atari.atari_network import RainbowNet, ScaledObsInputActionReprNet

        network = RainbowNet(c=4, h=84, w=84, action_shape=[self.n_actions])
        self.policy = C51Policy(
            model=ScaledObsInputActionReprNet(network),
            action_space=self.env.action_space,
            observation_space=self.env.observation_space,
        )
        self.algorithm = TianshouRainbowDQN(
            policy=self.policy,
            optim=AdamOptimizerFactory(lr=6.25e-5),
            gamma=GAMMA,
            n_step_return_horizon=N_STEPS,
            target_update_freq=TARGET_EVERY // UPDATE_EVERY,
        )
        self.buffer = PrioritizedReplayBuffer(
            CAPACITY, alpha=ALPHA, beta=BETA, ignore_obs_next=True, save_only_last_obs=True, stack_num=4
        )
        self.policy.train()

    def _act(self, obs: np.ndarray) -> int:
        from tianshou.data import Batch

        with th.no_grad():
            return int(self.policy(Batch(obs=obs[None], info={})).act[0])

    def _add(self, obs: np.ndarray, action: int, reward: float, next_obs: np.ndarray, done: bool, truncated: bool) -> None:
        from tianshou.data import Batch

        ends = {"terminated": done and not truncated, "truncated": truncated}
        self.buffer.add(Batch(obs=obs, act=action, rew=reward, obs_next=next_obs, info={}, **ends))

    def _train(self) -> None:
        from tianshou.algorithm.algorithm_base import policy_within_training_step

        with policy_within_training_step(self.policy):
            self.algorithm.update(self.buffer, BATCH_SIZE)


def qr_dqn() -> Contender:
    """:return: sb3-contrib's QR-DQN with as many quantiles as Rainbow has atoms, or nearly"""
    from sb3_contrib import QRDQN

    return SB3Like(QRDQN, policy_kwargs={"n_quantiles": 50})


#: By name
CONTENDERS: dict[str, Callable[[], Contender]] = {
    "sb3-rainbow": lambda: SB3Like(RainbowDQN),
    "sb3-rainbow, bf16": lambda: SB3Like(RainbowDQN, amp="bf16"),
    "sb3-rainbow, six parts": lambda: SB3Like(RainbowDQN, n_atoms=51),  # as the other Rainbows
    "SB3 DQN": lambda: SB3Like(DQN),
    "sb3-contrib QR-DQN": qr_dqn,
    "tianshou Rainbow": TianshouRainbow,
    "PFRL Rainbow": PFRLRainbow,
    "the notebook's loop": NotebookLoop,
    "sb3-rainbow, 8 native": lambda: SB3Like(RainbowDQN, 8, native=True),
    "sb3-rainbow, 8 native, bf16": lambda: SB3Like(RainbowDQN, 8, native=True, amp="bf16"),
    "sb3-rainbow, 8 native, compiled": lambda: SB3Like(RainbowDQN, 8, native=True, compile=True),
    "sb3-rainbow, 8 native, bf16, compiled": lambda: SB3Like(RainbowDQN, 8, native=True, amp="bf16", compile=True),
    "SB3 DQN, 8": lambda: SB3Like(DQN, 8),
}

"""Atari games in ALE's own threads, for SB3."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.atari_wrappers import (
    AtariWrapper,
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
    WarpFrame,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn

from sb3_rainbow.arguments import check_integer

#: After so many steps a game's next start is seeded anew: it takes ALE 0.2 s, but what went before need not be played again
#: when a checkpoint is loaded
RESEED = 10_000
NEW_GAME = -1
#: What ``AtariGame`` does in the place of SB3's and Gymnasium's wrappers, the outermost first
_WRAPPERS = (
    AtariWrapper,
    ClipRewardEnv,
    WarpFrame,
    FireResetEnv,
    EpisodicLifeEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
    Monitor,
    TimeLimit,
    OrderEnforcing,
    PassiveEnvChecker,
)
#: ``_ACTIONS[i]`` is what ALE takes for the i-th action, as arrays are made slowly
_ACTIONS = np.arange(18)[:, None]
_FULL_STRENGTH = np.ones(1, np.float32)
#: What is in a checkpoint, beside the emulators
_STATE = ("_begun", "_over", "_lives", "_score", "_frames_before")
_MONITOR_STATE = ("t_start", "total_steps", "episode_returns", "episode_lengths", "episode_times")


class Emulator:
    """
    ALE in a thread of its own. It shows no state; what a checkpoint holds is the seed of a start and all moves since then.

    :param settings: of ALE's vector environment
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._env = AtariVectorEnv(**settings, num_envs=1, num_threads=1)
        self._ale = self._env.ale
        self._pending = False
        #: ``[height, width]`` uint8: first frame of the game
        self.first = np.zeros(0, np.uint8)
        self.seed(np.random.default_rng())

    def seed(self, generator: np.random.Generator) -> None:
        """
        :param generator: of the seeds of all starts from now on
        """
        self._generator = generator
        self._start_seed = -1
        self._moves: list[int] = []

    def start(self) -> None:
        """Begin a game. Some milliseconds; much longer once in ``RESEED`` moves, when the emulator is seeded anew."""
        if self._start_seed < 0 or len(self._moves) >= RESEED:
            self._start_seed = int(self._generator.integers(2**31 - 1))
            self._moves = []
            self._reset(self._start_seed)
        else:
            self._moves.append(NEW_GAME)
            self._reset(None)

    def _reset(self, seed: int | None) -> None:
        frames, infos = self._env.reset(seed=seed)
        self.first, self.lives = frames[0, 0], infos["lives"].item()

    def send(self, move: int) -> None:
        """
        Start a step.

        :param move: repeated in every frame of it
        """
        self._moves.append(move)
        # Not AtariVectorEnv.send, which costs three times as much
        self._ale.send(_ACTIONS[move], _FULL_STRENGTH)
        self._pending = True

    def receive(self) -> tuple[Any, ...]:
        """:return: frames ``[1, 1, height, width]``, rewards, terminations, truncations and infos of the step, ``[1]`` each"""
        try:
            return self._ale.recv()
        finally:  # after a Ctrl-C too
            self._pending = False

    def drain(self) -> None:
        """Wait for a step that was interrupted, and forget it."""
        if self._pending:
            self.receive()

    def state_dict(self) -> dict[str, Any]:
        """:return: for a checkpoint"""
        return {"generator": self._generator, "start_seed": self._start_seed, "moves": np.array(self._moves, np.int8)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Play to where another emulator was.

        :param state: what its ``state_dict()`` returned
        """
        self.seed(state["generator"])
        if state["start_seed"] >= 0:
            self._start_seed = state["start_seed"]
            self._reset(self._start_seed)
            for move in state["moves"].tolist():
                if move == NEW_GAME:
                    self._moves.append(NEW_GAME)
                    self._reset(None)
                else:
                    self.send(move)
                    self.receive()


class AtariGame:
    """
    One game, with the meaning of SB3's ``AtariWrapper`` around ``Monitor``. After ``send`` it plays, and ``receive`` waits for
    the end of the step. It has two emulators: while one plays, the other one's next game is begun.

    :param env: the game as ``make_atari_env`` makes it: its wrappers say what is to be done, and ``Monitor`` takes the scores
    :param pool: begins games
    :raises ValueError: if a wrapper or a setting is not one of those that are known; it names it
    """

    def __init__(self, env: gym.Env[Any, Any], pool: ThreadPoolExecutor) -> None:
        wrappers: dict[type, Any] = {}
        places = []
        inner = env
        while isinstance(inner, gym.Wrapper):
            kind = TimeLimit if isinstance(inner, TimeLimit) else type(inner)  # RL Zoo puts one of its own in its place
            wrappers[kind] = inner
            places.append(_WRAPPERS.index(kind) if kind in _WRAPPERS else -1)
            inner = inner.env
        if not isinstance(inner, AtariEnv) or places != sorted(set(places) - {-1}):
            raise ValueError(
                f"env={env}: must be an Atari game in Monitor in AtariWrapper, with nothing else around or between them "
                "(sticky actions: env_kwargs={'repeat_action_probability': ...})"
            )
        _check_game(inner, wrappers)
        self._monitor: Monitor[Any, Any] | None = wrappers.get(Monitor)
        self._ends_with_life = EpisodicLifeEnv in wrappers
        self._fires = FireResetEnv in wrappers
        self._clips = ClipRewardEnv in wrappers
        self._pool = pool
        self._settings = settings = _settings(inner, wrappers)
        #: The one that plays, and the one that waits
        self._emulators = [Emulator(settings), Emulator(settings)]
        self._starting: Future[None] | None = None
        self.seed(None)

    def seed(self, seed: int | None) -> None:
        """
        :param seed: of the next game, and of all after it
        """
        self._wait()
        for emulator, generator in zip(self._emulators, np.random.default_rng(seed).spawn(2), strict=True):
            emulator.seed(generator)
        self._begun = False
        self._over = True
        self._lives = 0
        self._score = 0.0
        self._frames_before = 0

    def abandon(self) -> None:
        """After an interrupted step: the next reset begins a game."""
        self._emulators[0].drain()
        self._over = True

    def reset(self) -> np.ndarray:
        """
        Start a game, or go on with one of which a life was lost: SB3's ``FireResetEnv`` around ``EpisodicLifeEnv``.

        :return: ``[height, width]`` uint8
        """
        frame = self._next_life()
        for move in (1, 2) if self._fires else ():
            frame, _, terminated, truncated, _ = self.step(move)
            if terminated or truncated:
                self._next_life()
        return frame

    def step(self, move: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param move: repeated in every frame of the step
        :return: ``[height, width]`` uint8, reward, terminated, truncated, info
        """
        self.send(move)
        return self.receive()

    def send(self, move: int) -> None:
        """
        Start a step.

        :param move: repeated in every frame of it
        """
        self._emulators[0].send(move)

    def receive(self) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Wait for the end of the step.

        :return: ``[height, width]`` uint8, reward, terminated, truncated, info
        """
        frames, rewards, terminations, truncations, infos = self._emulators[0].receive()
        reward, terminated, truncated = rewards.item(), terminations.item(), truncations.item()
        n_frames = infos["episode_frame_number"].item()
        info: dict[str, Any] = {"lives": infos["lives"].item(), "episode_frame_number": n_frames}
        info["frame_number"] = self._frames_before + n_frames
        self._score += reward
        self._over = terminated or truncated
        if self._over:
            self._frames_before += n_frames
            if self._monitor is not None:
                info["episode"] = self._finish(self._monitor, n_frames)
        lives, self._lives = self._lives, info["lives"]
        if self._ends_with_life and 0 < self._lives < lives:
            terminated = True
        if self._clips:
            reward = (reward > 0) - (reward < 0)
        return frames[0, 0], float(reward), terminated, truncated, info

    def _next_life(self) -> np.ndarray:
        if not self._over and self._ends_with_life:
            frame = self.step(0)[0]
            if not self._over:
                return frame
        if self._begun:
            self._wait()
            self._emulators.reverse()
        else:
            self._emulators[0].start()
            self._begun = True
        self._starting = self._pool.submit(self._emulators[1].start)
        self._lives, self._over, self._score = self._emulators[0].lives, False, 0.0
        return self._emulators[0].first

    def _wait(self) -> None:
        """Until the waiting emulator has begun its game."""
        if self._starting is not None:
            # Not yet begun: whoever is before it in the pool may be waiting as this does
            (self._emulators[1].start if self._starting.cancel() else self._starting.result)()
            self._starting = None

    def _finish(self, monitor: Monitor[Any, Any], n_frames: int) -> dict[str, Any]:
        """What ``Monitor`` does at the end of a game."""
        seconds = time.time() - monitor.t_start
        episode = {"r": round(self._score, 6), "l": n_frames, "t": round(seconds, 6)}
        monitor.episode_returns.append(self._score)
        monitor.episode_lengths.append(n_frames)
        monitor.episode_times.append(seconds)
        monitor.total_steps += n_frames
        if monitor.results_writer:
            monitor.results_writer.write_row(episode)
        return episode

    def state_dict(self) -> dict[str, Any]:
        """:return: for a checkpoint"""
        self._wait()
        state = {name: getattr(self, name) for name in _STATE}
        state["emulators"] = [emulator.state_dict() for emulator in self._emulators]
        state["settings"] = self._settings | {"ale_py": ale_py.__version__}
        if self._monitor is not None:
            state["monitor"] = {name: getattr(self._monitor, name) for name in _MONITOR_STATE}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Play to where another game was.

        :param state: what its ``state_dict()`` returned
        :raises ValueError: if the game has other settings: the moves would lead to another point
        """
        self._wait()
        here = self._settings | {"ale_py": ale_py.__version__}
        for name, value in state["settings"].items():
            if here[name] != value:
                raise ValueError(f"{name}={here[name]}: must be {value}, as when the checkpoint was written")
        for emulator, played in zip(self._emulators, state["emulators"], strict=True):
            emulator.load_state_dict(played)
        for name in _STATE:
            setattr(self, name, state[name])
        if self._monitor is not None:
            for name, value in state.get("monitor", {}).items():
                setattr(self._monitor, name, value)


def _check_game(game: AtariEnv, wrappers: dict[type, Any]) -> None:
    """Refuse what ALE's vector environment cannot do, or ``AtariGame`` does not."""
    settings: dict[str, Any] = {"frameskip": game._frameskip, "continuous": game.continuous, "sound_obs": game.sound_obs}
    settings |= {"mode": game._game_mode, "difficulty": game._game_difficulty}
    expected = {"frameskip": 1, "continuous": False, "sound_obs": False, "mode": None, "difficulty": None}
    for name, value in settings.items():
        if value != expected[name]:
            raise ValueError(f"{name}={value}: must be {expected[name]} in AtariVecEnv, as in PongNoFrameskip-v4")
    if game.render_mode == "human":
        raise ValueError("render_mode=human: AtariVecEnv shows no window; use enjoy --no-render, or record_video")
    if WarpFrame not in wrappers:
        raise ValueError(f"env={game}: must be in SB3's AtariWrapper")
    monitor = wrappers.get(Monitor)
    if monitor is not None and (monitor.info_keywords or monitor.reset_keywords or not monitor.allow_early_resets):
        raise ValueError("monitor_kwargs: must not have info_keywords, reset_keywords or allow_early_resets=False")


def _settings(game: AtariEnv, wrappers: dict[type, Any]) -> dict[str, Any]:
    """Settings of ALE's vector environment that have the meaning of some wrappers."""
    ale, limit, warp = game.ale, wrappers.get(TimeLimit), wrappers[WarpFrame]
    most_frames = [ale.getInt("max_num_frames_per_episode"), limit._max_episode_steps if limit else 0]
    return {
        "game": game._game,
        "max_num_frames_per_episode": min([frames for frames in most_frames if frames > 0], default=2**31 - 1),
        "repeat_action_probability": ale.getFloat("repeat_action_probability"),
        "full_action_space": len(game._action_set) == len(ale.getLegalActionSet()),
        "img_height": warp.height,
        "img_width": warp.width,
        "stack_num": 1,
        "frameskip": wrappers[MaxAndSkipEnv]._skip if MaxAndSkipEnv in wrappers else 1,
        "noop_max": wrappers[NoopResetEnv].noop_max if NoopResetEnv in wrappers else 0,
        "reward_clipping": False,
        "use_fire_reset": False,
    }


class AtariVecEnv(DummyVecEnv):
    """
    Atari games in SB3's ``AtariWrapper``, played by ALE's vector environment: in C++, each game in a thread of its own. ::

        make_atari_env("PongNoFrameskip-v4", 8, vec_env_cls=AtariVecEnv, vec_env_kwargs={"n_stack": 4})

    All that ``AtariWrapper`` and ``Monitor`` do is done: no-ops and FIRE at the start, the maximum of two frames, a life lost
    ends the episode and the game goes on, rewards are clipped, infos tell scores and ends of whole games. With ``n_stack`` the
    observations are those of SB3's ``VecFrameStack`` and ``VecTransposeImage``.

    Departures: ALE takes the maximum of grey frames, SB3 that of colours: Breakout and Space Invaders look the same, in other
    games a few pixels differ (docs/speed.md). It makes 0 to ``noop_max - 1`` no-ops, SB3 1 to ``noop_max``. ``get_attr`` and
    ``env_method`` reach the environments that the games were made from, whose own emulators stand still.

    In RL Zoo's YAML, ``vec_env_wrapper: sb3_rainbow.envs.AtariVecEnv`` takes the place of its ``DummyVecEnv``.

    :param env_fns: make the games, as ``make_atari_env`` gives them; or a ``DummyVecEnv`` of such games
    :param n_stack: frames of an observation, which is then ``[n_stack, height, width]``; 1 leaves it at ``[height, width, 1]``
    :raises ValueError: if an environment is no Atari game in ``AtariWrapper``, or has settings that ALE's has not
    """

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]] | DummyVecEnv, n_stack: int = 1) -> None:
        check_integer("n_stack", n_stack, 1)
        gym.register_envs(ale_py)
        self._resetting: dict[int, Future[np.ndarray]] = {}
        self._stepping = False
        if isinstance(env_fns, VecEnv):
            if not isinstance(env_fns, DummyVecEnv):
                raise ValueError(f"env_fns={env_fns}: must be a DummyVecEnv, without --vec-env subproc and other wrappers")
            super().__init__([lambda env=env: env for env in env_fns.envs])  # type: ignore[misc]
            self._seeds = env_fns._seeds
        else:
            check_integer("len(env_fns)", len(env_fns), 1)
            super().__init__(env_fns)
        self._pool = ThreadPoolExecutor(thread_name_prefix="AtariVecEnv")
        self.games = [AtariGame(env, self._pool) for env in self.envs]
        self.n_stack = n_stack
        height, width = self.observation_space.shape[:2]  # type: ignore[index]
        if n_stack > 1:
            self.observation_space = spaces.Box(0, 255, (n_stack, height, width), np.uint8)
        self._stacks = np.zeros((self.num_envs, n_stack, height, width), np.uint8)

    def reset(self) -> np.ndarray:
        """:return: ``[n_envs, *obs_shape]`` uint8: first observations"""
        if self._stepping:  # a step was interrupted
            wait(self._resetting.values())
            for game in self.games:
                game.abandon()
            self._stepping = False
        for game, seed in zip(self.games, self._seeds, strict=True):
            if seed is not None:
                game.seed(seed)
        self._reset_seeds()
        self._reset_options()
        frames = np.stack([game.reset() for game in self.games])
        self.reset_infos = [{} for _ in self.games]
        return self._push(np.zeros_like(self._stacks), frames)

    def step_async(self, actions: np.ndarray) -> None:
        """
        Start a step of every game.

        :param actions: ``[n_envs]`` int
        :raises ValueError: if they are not as many as games, or one is not in the action space; nothing has been played then
        """
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= self.action_space.n:  # type: ignore[attr-defined]
            raise ValueError(f"actions={actions.tolist()}: must be {self.num_envs} of {self.action_space}")
        self._stepping = True
        for game, action in zip(self.games, actions.tolist(), strict=True):
            game.send(action)

    def step_wait(self) -> VecEnvStepReturn:
        """:return: observations ``[n_envs, *obs_shape]`` uint8, rewards ``[n_envs]`` float32, dones ``[n_envs]``, and infos"""
        frames = np.empty((self.num_envs, *self._stacks.shape[2:]), np.uint8)
        rewards, dones, infos = np.empty(self.num_envs, np.float32), np.empty(self.num_envs, bool), []
        self._resetting = {}
        for i, game in enumerate(self.games):
            frames[i], rewards[i], terminated, truncated, info = game.receive()
            dones[i] = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            infos.append(info)
            if dones[i]:
                last = np.concatenate((self._stacks[i, 1:], frames[i, None]))
                info["terminal_observation"] = last if self.n_stack > 1 else last[0, :, :, None]
                self._resetting[i] = self._pool.submit(game.reset)  # while the others play
        for i, first in self._resetting.items():
            frames[i] = first.result()
            self.reset_infos[i] = {}
        self._stepping = False
        obs = self._push(self._stacks, frames)
        self._stacks[dones, :-1] = 0  # a new array, not the caller's of the step before
        return obs, rewards, dones, infos

    def _push(self, stacks: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Stacks with new frames: a new array at every step, as the one before belongs to the caller."""
        self._stacks = np.concatenate((stacks[:, 1:], frames[:, None]), axis=1)
        return self._stacks if self.n_stack > 1 else self._stacks[:, 0, :, :, None]

    def close(self) -> None:
        """End the games."""
        self._pool.shutdown()
        super().close()

    def get_images(self) -> list[np.ndarray | None]:
        """:return: the newest frame of every game, ``[height, width, 3]`` uint8"""
        return [np.repeat(stack[-1, :, :, None], 3, axis=2) for stack in self._stacks]

    def state_dict(self) -> dict[str, Any]:
        """:return: state of all games, for a checkpoint"""
        return {"games": [game.state_dict() for game in self.games], "stacks": self._stacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Play all games to where they were: up to some ten thousand steps each.

        :param state: what ``state_dict()`` returned, for as many games
        """
        list(self._pool.map(AtariGame.load_state_dict, self.games, state["games"]))
        self._stacks = state["stacks"].copy()

"""Environments in actors of Ray, which may die or hang: for simulators that are slow, or need more than one machine."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_rainbow.arguments import check_integer, check_number
from sb3_rainbow.checkpoint.encoding import Unencodable
from sb3_rainbow.cluster import connect
from sb3_rainbow.envs.subproc import CLOSING, STARTING, ReadableEnvs, WorkerError, make_readable

#: How often a replacement is tried that dies itself
TRIES = 3


class _Actor:
    """What runs in an actor: SB3's own ``DummyVecEnv``, so that all is as in one process."""

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]]) -> None:
        self._envs = DummyVecEnv(env_fns)

    def about(self) -> tuple[Any, Any, Any]:
        return self._envs.observation_space, self._envs.action_space, self._envs.metadata

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> tuple[Any, Any]:
        self._envs._seeds, self._envs._options = seeds, options
        return self._envs.reset(), self._envs.reset_infos

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        return *self._envs.step(actions), self._envs.reset_infos

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._envs, method)(*args, **kwargs)


class RayVecEnv(ReadableEnvs, VecEnv):
    """
    Environments in actors of Ray, on this machine or on a cluster, equal to SB3's ``DummyVecEnv`` for the same seeds.

    It is for slow simulators. Each step costs about a millisecond for every actor: on one machine, Atari is slower than with
    ``DummyVecEnv``, and much slower than with ``AtariVecEnv``.

    An actor that dies, or does not answer in time, is replaced by a new one. The episodes of its environments are truncated:
    the step that was lost counts as one without a reward that changed nothing, ``terminal_observation`` is the last
    observation that was seen, and ``worker_error`` in the info says why. The new environments are seeded with numbers not used
    before. What ``set_attr`` had set in them is lost. An error that an environment raises is raised here.

    :param env_fns: make the environments; each must register what it makes, as it is called in another process
    :param envs_per_actor: how many environments one actor steps, one after the other
    :param timeout: seconds to wait for an answer of an actor; at least a minute for the first of a new one
    :param ray_options: of each actor, as Ray's ``options`` takes them, such as ``{"num_cpus": 1, "num_gpus": 0.25}``
    :param address: of a cluster; None for a Ray of this machine's own, see ``sb3_rainbow.cluster.connect``
    :raises ValueError: if ``env_fns`` is empty, ``envs_per_actor`` is less than 1, or ``timeout`` is not positive
    :raises WorkerError: if an actor cannot be started; later, if its replacements cannot
    :raises ImportError: if the extra ``ray`` is not installed
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        envs_per_actor: int = 1,
        timeout: float = 60.0,
        ray_options: dict[str, Any] | None = None,
        address: str | None = None,
    ) -> None:
        check_integer("len(env_fns)", len(env_fns), 1)
        check_integer("envs_per_actor", envs_per_actor, 1)
        check_number("timeout", timeout, 0, math.inf, low_open=True)
        self._ray = connect(address)
        self._timeout, self._starting = (None if math.isinf(timeout) else t for t in (timeout, max(timeout, STARTING)))
        readable = [make_readable(env_fn) for env_fn in env_fns]
        self._slices = [slice(i, i + envs_per_actor) for i in range(0, len(readable), envs_per_actor)]
        self._env_fns = [readable[part] for part in self._slices]
        self._class = self._ray.remote(_Actor).options(max_restarts=0, **(ray_options or {}))
        self._actors = [self._class.remote(env_fns) for env_fns in self._env_fns]
        self._first_seeds: Sequence[int | None] = [None] * len(readable)
        self._n_replaced = 0
        self._last_obs: Any = None
        self._closed = False
        # All of them: those that still start must not be taken for hung
        about, *_ = self._results([actor.about.remote() for actor in self._actors], self._starting)
        super().__init__(len(readable), *about[:2])
        self.metadata = about[2]

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._first_seeds = super().seed(seed)
        return self._first_seeds

    def reset(self) -> VecEnvObs:
        pairs = zip(self._actors, self._slices, strict=True)
        references = [actor.reset.remote(self._seeds[part], self._options[part]) for actor, part in pairs]
        answers, lost = self._answers(references, self._timeout)
        answers |= self._replace(lost)
        self._reset_seeds()
        self._reset_options()
        for number, part in enumerate(self._slices):
            self.reset_infos[part] = answers[number][1]
        self._last_obs = _each(np.concatenate, [answers[number][0] for number in range(len(self._actors))])
        return copy.deepcopy(self._last_obs)

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: ``[num_envs, ...]``
        """
        pairs = zip(self._actors, self._slices, strict=True)
        self._waiting = [actor.step.remote(actions[part]) for actor, part in pairs]

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations, rewards, dones and infos; those of lost actors as the class says
        """
        answers, lost = self._answers(self._waiting, self._timeout)
        for number, (observations, reset_infos) in self._replace(lost).items():
            infos = []
            for i in range(self.num_envs)[self._slices[number]]:
                last = _each(lambda arrays, i=i: arrays[0][i], [self._last_obs])  # type: ignore[misc]
                infos.append({"TimeLimit.truncated": True, "terminal_observation": last, "worker_error": lost[number]})
            n = len(infos)
            answers[number] = (observations, np.zeros(n, np.float32), np.ones(n, bool), infos, reset_infos)
        ordered = [answers[number] for number in range(len(self._actors))]
        for part, answer in zip(self._slices, ordered, strict=True):
            self.reset_infos[part] = answer[4]
        self._last_obs = _each(np.concatenate, [answer[0] for answer in ordered])
        rewards, dones = (np.concatenate([answer[i] for answer in ordered]) for i in (1, 2))
        # Arrays that came through Ray cannot be written to
        infos = copy.deepcopy([info for answer in ordered for info in answer[3]])
        return copy.deepcopy(self._last_obs), rewards, dones, infos

    def state_dict(self) -> dict[str, Any]:
        """
        :return: state of all environments, and what the next replacement of an actor needs, for a checkpoint
        :raises Unencodable: if an environment cannot be read, or an actor has died: the next step replaces it
        """
        own = {"n_replaced": self._n_replaced, "first_seeds": list(self._first_seeds), "last_obs": self._last_obs}
        try:
            return super().state_dict() | own
        except WorkerError as error:
            raise Unencodable(str(error)) from error

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: what ``state_dict()`` returned, for as many environments
        :raises ValueError: if an environment is not like the one that was stored
        """
        super().load_state_dict(state)
        self._n_replaced, self._first_seeds, self._last_obs = (state[k] for k in ("n_replaced", "first_seeds", "last_obs"))

    def _answers(
        self, references: list[Any], timeout: float | None, numbers: Sequence[int] | None = None
    ) -> tuple[dict[int, Any], dict[int, str]]:
        """By its place in the list, an answer, or why there is none. Without numbers, the places are those of the actors."""
        arrived = set(self._ray.wait(references, num_returns=len(references), timeout=timeout)[0])
        answers, lost = {}, {}
        for place, reference in enumerate(references):
            number = place if numbers is None else numbers[place]
            if reference not in arrived:
                lost[place] = f"actor {number} did not answer for {timeout:g} s"
                continue
            try:
                answers[place] = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError:  # the environment's own error
                raise
            except self._ray.exceptions.RayError as error:
                lost[place] = f"actor {number} died ({type(error).__name__})"
        return answers, lost

    def _replace(self, lost: dict[int, str]) -> dict[int, Any]:
        """New actors in the place of lost ones: their first observations and infos."""
        found: dict[int, Any] = {}
        for _ in range(TRIES):
            missing = [number for number in lost if number not in found]
            if not missing:
                break
            references = []
            for number in missing:
                logging.getLogger(__name__).warning("%s: it is replaced", lost[number])
                self._ray.kill(self._actors[number])
                self._actors[number] = self._class.remote(self._env_fns[number])
                self._n_replaced += 1
                used = self.num_envs * self._n_replaced
                seeds = [None if seed is None else seed + used for seed in self._first_seeds[self._slices[number]]]
                references.append(self._actors[number].reset.remote(seeds, [{}] * len(seeds)))
            answers, _ = self._answers(references, self._starting, missing)
            found |= {missing[i]: answer for i, answer in answers.items()}
        if len(found) < len(lost):
            raise WorkerError(f"{'; '.join(lost.values())}; {TRIES} replacements died, or did not answer either")
        return found

    def _results(self, references: list[Any], timeout: float | None, numbers: Sequence[int] | None = None) -> list[Any]:
        """Answers where none may be missing."""
        answers, lost = self._answers(references, timeout, numbers)
        if lost:
            raise WorkerError("; ".join(dict.fromkeys(lost.values())))
        return [answers[i] for i in range(len(references))]

    def _call(self, indices: VecEnvIndices, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method of the actors' ``DummyVecEnv`` for each environment."""
        size = len(self._env_fns[0])
        places = [divmod(i, size) for i in self._get_indices(indices)]
        references = [self._actors[number].call.remote(method, *args, indices=[place], **kwargs) for number, place in places]
        return [(result or [None])[0] for result in self._results(references, self._timeout, [number for number, _ in places])]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._call(indices, "get_attr", attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._call(indices, "set_attr", attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return self._call(indices, "env_method", method_name, *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: class of a wrapper
        :param indices: of the environments
        :return: whether they have one
        """
        return self._call(indices, "env_is_wrapped", wrapper_class)

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: an image of each environment
        """
        return self._call(None, "env_method", "render")

    def close(self) -> None:
        """Close the environments, and end the actors: also those that do not answer."""
        if self._closed or not self._ray.is_initialized():
            return
        self._closed = True
        closing = [actor.call.remote("close") for actor in self._actors]
        self._ray.wait(closing, num_returns=len(closing), timeout=CLOSING)
        for actor in self._actors:
            self._ray.kill(actor)


def _each(function: Callable[[list[np.ndarray]], Any], observations: Sequence[Any]) -> Any:
    """What a function makes of arrays of observations, for every entry of dict and tuple observations."""
    first = observations[0]
    if isinstance(first, dict):
        return type(first)((key, function([part[key] for part in observations])) for key in first)
    if isinstance(first, tuple):
        return tuple(function(list(parts)) for parts in zip(*observations, strict=True))
    return function(list(observations))

"""
Registers Rainbow in RL Zoo, and runs RL Zoo without that having been done at start-up:
``python -m sb3_rainbow.zoo train --algo rainbow --env CartPole-v1``.
"""

import functools
import inspect
import runpy
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from stable_baselines3.common import vec_env

from sb3_rainbow.envs import SubprocVecEnv
from sb3_rainbow.presets import PRESETS, hyperparams_path
from sb3_rainbow.rainbow import RainbowDQN

ALGO = "rainbow"


def _register_algorithm(module: ModuleType) -> None:
    registered = module.ALGOS.setdefault(ALGO, RainbowDQN)
    if registered is not RainbowDQN:
        warnings.warn(
            f"RL Zoo's algorithm {ALGO!r} is {registered}, not RainbowDQN: left as it is", RuntimeWarning, stacklevel=2
        )


def _register_tuning(module: ModuleType) -> None:
    from sb3_rainbow import tuning

    module.HYPERPARAMS_SAMPLER.setdefault(ALGO, tuning.sample_rainbow_params)
    module.HYPERPARAMS_CONVERTER.setdefault(ALGO, tuning.convert_rainbow_params)


def _register_config(module: ModuleType) -> None:
    initialise = module.ExperimentManager.__init__
    if hasattr(initialise, "knows_rainbow"):
        return

    @functools.wraps(initialise)
    def with_our_config(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(initialise).bind(self, *args, **kwargs)
        if bound.arguments.get("algo") == ALGO:
            config = bound.arguments.get("config") or ALGO
            if config in (ALGO, *PRESETS):
                bound.arguments["config"] = str(hyperparams_path(config))
        initialise(*bound.args, **bound.kwargs)
        if self.algo == ALGO and self.vec_env_class is vec_env.SubprocVecEnv:
            # Ours names a worker that died, and its environments can be in a checkpoint. RL Zoo has no argument for the time
            self.vec_env_class = functools.partial(SubprocVecEnv, timeout=600.0)

    objective = module.ExperimentManager.objective

    def without_checkpoints(self: Any, trial: Any) -> float:
        # Trials have no seed, so one would go on from another's checkpoints
        given = self.specified_callbacks
        given = given if isinstance(given, list) else [given]
        self.specified_callbacks = [each for each in given if each and "ResumableCheckpointCallback" not in str(each)]
        return objective(self, trial)

    with_our_config.knows_rainbow = True  # type: ignore[attr-defined]
    module.ExperimentManager.__init__ = with_our_config
    module.ExperimentManager.objective = without_checkpoints


#: What is done to each of RL Zoo's modules, once it is executed
PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "rl_zoo3.utils": _register_algorithm,
    "rl_zoo3.hyperparams_opt": _register_tuning,
    "rl_zoo3.exp_manager": _register_config,
}


def main() -> None:
    """Run one of RL Zoo's modules: the first argument is its name (``train``, ``enjoy``, ...), the others are its own."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(
            "usage: python -m sb3_rainbow.zoo {train,enjoy,record_video,...} [arguments of that module of RL Zoo]"
        )
    module = f"rl_zoo3.{sys.argv.pop(1)}"
    import rl_zoo3.exp_manager  # noqa: F401  (imports all three)

    for name, patch in PATCHES.items():  # at start-up it may be switched off; twice changes nothing
        patch(sys.modules[name])
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

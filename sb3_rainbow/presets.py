"""Settings by name: the papers', the notebook's and ours. The YAML files of RL Zoo are the only source of their values."""

from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.utils import LinearSchedule

from sb3_rainbow.arguments import check_choice

#: ``hyperparams/<name>.yml``
PRESETS = ("hessel", "dopamine", "data_efficient", "low_budget", "notebook")
#: What RL Zoo takes for itself
ZOO_ONLY = {"callback", "env_kwargs", "env_wrapper", "frame_stack", "n_timesteps"}


def hyperparams_path(name: str) -> Path:
    """
    :param name: name of the file, without ``.yml``
    :return: a YAML of ours: in the installed package, or at the top of the checkout
    :raises FileNotFoundError: if there is none in either place
    """
    package = Path(__file__).parent
    for folder in (package / "hyperparams", package.parent / "hyperparams"):
        if (folder / f"{name}.yml").is_file():
            return folder / f"{name}.yml"
    raise FileNotFoundError(f"no {name}.yml in {package}/hyperparams, nor in {package.parent}/hyperparams")


def preset(name: str, env_id: str = "atari") -> dict[str, Any]:
    """
    Keyword arguments for Atari, whose environment the caller makes: ``RainbowDQN(env=env, **preset("hessel"))``. How the paper
    wraps the environment and how long it trains stands in ``hyperparams/<name>.yml``, with the source of each value.

    - ``"hessel"``: full Rainbow (Hessel et al. 2018), for some 50 million steps
    - ``"dopamine"``: full Rainbow of Dopamine (Castro et al. 2018)
    - ``"data_efficient"``: a small network and many updates, for 100,000 steps (van Hasselt et al. 2019)
    - ``"low_budget"``: full Rainbow for 100,000 to a million steps, by our own runs. Its callback is for ``learn()``, but not
      for Pong: ``FewerSteps(n_steps=1, after=0.3)`` of ``sb3_rainbow.callbacks``
    - ``"notebook"``: five parts with independent noise, for 400,000 steps

    :param name: one of those
    :param env_id: ``"PongNoFrameskip-v4"`` has settings of its own in ``"low_budget"``; any other has those of Atari
    :return: by name, the policy among them
    :raises ValueError: if there is no such preset
    """
    check_choice("name", name, PRESETS)
    sections = yaml.safe_load(hyperparams_path(name).read_text())
    settings = sections.get(env_id, sections["atari"])
    arguments = {argument: value for argument, value in settings.items() if argument not in ZOO_ONLY}
    kind, _, start = str(arguments["learning_rate"]).partition("_")
    if kind == "lin":  # RL Zoo's word for a rate that falls to 0
        arguments["learning_rate"] = LinearSchedule(float(start), 0.0, 1.0)
    return arguments

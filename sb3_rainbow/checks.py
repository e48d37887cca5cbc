"""What ``RainbowDQN`` refuses, or warns of: wrong arguments, before anything is built, and numbers that are not finite."""

import inspect
import math
import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_rainbow.arguments import check_choice, check_integer, check_number, check_seed, check_storage_device
from sb3_rainbow.noisy import NOISY
from sb3_rainbow.type_aliases import Samples

#: Numbers up to here are safe in float32, which ends at 3e38
LARGEST_NUMBER = 1e30
#: What ``RainbowDQN`` passes on to its policy
PARTS_OF_POLICY = ("dueling", "noisy", "sigma0", "n_atoms", "v_min", "v_max")


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """
    :param arguments: of ``RainbowDQN``, by name
    :raises ValueError: if one is out of range; what SB3 checks itself is left to it
    """
    for name in ("buffer_size", "batch_size", "n_steps", "target_update_interval", "n_atoms", "stats_window_size"):
        if name in arguments:
            check_integer(name, arguments[name], 1)
    if not callable(arguments["learning_rate"]):
        check_number("learning_rate", arguments["learning_rate"], 0, LARGEST_NUMBER)
    check_integer("learning_starts", arguments["learning_starts"], 0)
    check_integer("gradient_steps", arguments["gradient_steps"], -1)
    train_freq = arguments["train_freq"]
    if isinstance(train_freq, tuple) and len(train_freq) == 2:  # its unit is checked by SB3
        check_integer("train_freq[0]", train_freq[0], 1)
    elif isinstance(train_freq, tuple | list):
        raise ValueError(f"train_freq={train_freq!r}: must be an integer, or a tuple like (2, 'episode')")
    else:
        check_integer("train_freq", train_freq, 1)
    check_seed(arguments["seed"])
    check_storage_device(arguments["storage_device"])
    exploration = "exploration_initial_eps", "exploration_final_eps", "exploration_fraction"
    for name in ("tau", "gamma", "alpha", "beta0", *exploration):
        check_number(name, arguments[name], 0, 1)
    check_number("max_grad_norm", arguments["max_grad_norm"], 0, math.inf, low_open=True)
    for name in ("double_q", "dueling", "prioritized", "compile", "cuda_graph"):
        check_choice(name, arguments[name], (True, False))
    check_choice("noisy", arguments["noisy"], NOISY)
    check_choice("amp", arguments["amp"], (None, "bf16"))
    v_min, v_max = arguments["v_min"], arguments["v_max"]
    if v_min is not None or v_max is not None:  # else quantiles
        check_number("v_min", v_min, -LARGEST_NUMBER, LARGEST_NUMBER)
        check_number("v_max", v_max, -LARGEST_NUMBER, LARGEST_NUMBER)
        if v_min >= v_max:
            raise ValueError(f"v_min={v_min}: must be less than v_max={v_max}")
        if v_max - v_min < 1e-6 * arguments["n_atoms"] * max(abs(v_min), abs(v_max)):
            raise ValueError(f"v_max={v_max}: must be farther from v_min={v_min}, for float32 to tell the atoms apart")
    if arguments["sigma0"] is not None:
        check_number("sigma0", arguments["sigma0"], 0, LARGEST_NUMBER, low_open=True)
    _check_kinds(arguments)


def _check_kinds(arguments: Mapping[str, Any]) -> None:
    """Arguments that are not numbers: dicts, classes, the action space."""
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        if not isinstance(arguments[name], Mapping | None):
            raise ValueError(f"{name}={arguments[name]!r}: must be a dict")
    sizes = (arguments["policy_kwargs"] or {}).get("net_arch")
    right = isinstance(sizes, list | tuple) and all(isinstance(size, Integral) and int(size) > 0 for size in sizes)
    if sizes is not None and not right and isinstance(arguments.get("policy"), str):  # a class of theirs may take others
        raise ValueError(f"net_arch={sizes!r}: must be a list of integers, at least 1")
    if not isinstance(arguments["replay_buffer_class"], type | None):
        raise ValueError(f"replay_buffer_class={arguments['replay_buffer_class']!r}: must be a class")
    if getattr(arguments.get("action_space"), "start", 0) != 0:  # SB3 counts outputs from 0, too
        raise ValueError(f"action_space={arguments['action_space']}: must start at 0")
    for name in PARTS_OF_POLICY:
        if name in (arguments["policy_kwargs"] or {}):
            raise ValueError(f"policy_kwargs={arguments['policy_kwargs']}: must not have {name!r}, an argument of RainbowDQN")


def check_built_with(model: Any) -> None:
    """
    :param model: about to build its networks: for the first time, or as they were when it was saved
    :raises ValueError: if ``load`` was to change an argument that decides what its parameters mean
    """
    for name, value in model._built_with.items():
        given = getattr(model, name)
        if given != value and (name, given) != ("sigma0", None):
            raise ValueError(f"{name}={given!r}: must be {value!r}, as in the model that was saved")


def check_amp(amp: str | None, device: th.device) -> None:
    """
    Warn of bfloat16 that takes longer than float32.

    :param amp: of ``RainbowDQN``
    :param device: of its networks
    """
    # oneDNN knows whether the processor has instructions for it. Without, an update took 610 ms, and 86 in float32
    in_doubt = amp == "bf16" and device.type == "cpu"
    if in_doubt and not (th.backends.mkldnn.is_available() and th.ops.mkldnn._is_mkldnn_bf16_supported()):
        message = "amp='bf16': this processor has no instructions for it, updates take several times as long as with amp=None"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def check_other_replay(model: Any) -> None:
    """
    :param model: about to make a replay buffer that is none of ours: its ``replay_buffer_class``, or SB3's own
    :raises ValueError: if ``storage_device`` would have no effect
    """
    if str(model.storage_device) not in ("cpu", "auto"):
        raise ValueError(
            f"storage_device={str(model.storage_device)!r}: must be 'cpu', as only a PrioritizedNStepReplayBuffer can be "
            f"elsewhere (replay_buffer_class={model.replay_buffer_class})"
        )
    # SB3's NStepReplayBuffer has a discount and windows of its own. Nobody is told that a default has no effect
    taken, defaults = (inspect.signature(cls).parameters for cls in (model.replay_buffer_class or ReplayBuffer, type(model)))
    for name, without in (("gamma", model.gamma), ("n_steps", 1)):
        given, own = getattr(model, name), taken[name].default if name in taken else without
        default = getattr(defaults.get(name), "default", given)  # a subclass may pass it on
        if name not in model.replay_buffer_kwargs and given not in (own, default):
            message = f"{name}={given} has no effect with {model.replay_buffer_class}, whose own is {own}"
            warnings.warn(f"{message}: give it in replay_buffer_kwargs", UserWarning, stacklevel=4)
    lost = model.prioritized and not hasattr(model.replay_buffer_class, "update_priorities")
    for name in ("alpha", "beta0"):
        given = getattr(model, name)
        if lost and given != getattr(defaults.get(name), "default", given):
            message = f"{name}={given} has no effect with {model.replay_buffer_class}, which has no priorities"
            warnings.warn(message, UserWarning, stacklevel=4)


def check_cuda_graph(replay_buffer: Any, optimizer: th.optim.Optimizer) -> None:
    """
    :param replay_buffer: of a model with ``cuda_graph=True`` on a GPU
    :param optimizer: its optimiser
    :raises ValueError: if updates would have to wait for the CPU
    """
    device = optimizer.param_groups[0]["params"][0].device
    arrays = getattr(replay_buffer, "arrays", [None])
    where = arrays[0].device if isinstance(arrays[0], th.Tensor) else "cpu"
    if where != device:
        raise ValueError(
            f"cuda_graph=True with a {type(replay_buffer).__name__} on {where}: must be a PrioritizedNStepReplayBuffer "
            f"on {device} (storage_device='{device}')"
        )
    if not (optimizer.defaults.get("fused") and "capturable" in optimizer.defaults):
        raise ValueError(f"cuda_graph=True with {type(optimizer).__name__}: must be Adam or AdamW, made with fused=True")


def check_loaded(loaded: Any, current: Any, model: Any) -> None:
    """
    :param loaded: replay buffer that was loaded
    :param current: that of the model, or None
    :param model: the model that it is to serve
    :raises ValueError: if it is of another class, or made for something else; it names both values
    """
    expected = {name: getattr(model, name) for name in ("observation_space", "action_space", "n_envs")}
    if current is not None:
        if type(loaded) is not type(current):
            raise ValueError(f"a {type(loaded).__name__} was loaded: must be a {type(current).__name__}, as in the model")
        # Ours has all of them, SB3's NStepReplayBuffer three
        names = ("n_steps", "gamma", "alpha", "weight_norm", "handle_timeout_termination")
        expected |= {name: getattr(current, name) for name in names if hasattr(current, name)}
    for name, value in expected.items():
        if getattr(loaded, name) != value:
            raise ValueError(f"{name}={getattr(loaded, name)} in the replay buffer loaded: must be {value}, as in the model")


def name_non_finite(replay_data: Samples, td_errors: th.Tensor) -> str:
    """
    :param replay_data: batch of an update
    :param td_errors: ``[batch, 1]``
    :return: a sentence that names the first quantity that is not finite, and its value
    """
    quantities: dict[str, Any] = {"rewards": replay_data.rewards}
    for name in ("observations", "next_observations"):
        observations = getattr(replay_data, name)
        quantities |= (
            {f"{name}[{key!r}]": entry for key, entry in observations.items()}
            if isinstance(observations, Mapping)
            else {name: observations}
        )
    quantities |= {"weights": getattr(replay_data, "weights", None), "td_errors": td_errors.detach()}
    for name, values in quantities.items():
        if values is not None and not values.isfinite().all():
            return f"{name} of the sampled batch contain {values[~values.isfinite()][0].item()}: training stopped"
    return "the gradient is not finite: training stopped"

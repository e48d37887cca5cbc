"""What a checkpoint holds: all that the next training step depends on."""

import copy
import importlib.metadata
import inspect
import json
import logging
import os
import random
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv

from sb3_rainbow.arguments import check_integer
from sb3_rainbow.checkpoint.encoding import (
    Arrays,
    Json,
    Unencodable,
    decode,
    decode_space,
    encode,
    encode_object,
    encode_space,
    read_object,
    restore_object,
)
from sb3_rainbow.checkpoint.folder import (
    MANIFEST,
    WRITER,
    CorruptCheckpointError,
    latest,
    link,
    newest_manifest,
    read_manifest,
    verify,
    with_progress,
    write_manifest,
    writing,
)
from sb3_rainbow.rainbow import RainbowDQN
from sb3_rainbow.replay.buffer import PrioritizedNStepReplayBuffer

#: Arrays of so many bytes have a file of their own
OWN_FILE_FROM = 2**22
#: Where training stands
PROGRESS = (
    "num_timesteps",
    "_total_timesteps",
    "_episode_num",
    "_n_updates",
    "_n_calls",
    "_current_progress_remaining",
    "exploration_rate",
    "ep_info_buffer",
    "ep_success_buffer",
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
)
#: Arguments of the constructor that belong to the process, or are found in the environment
_NOT_SETTINGS = ("policy", "env", "device", "verbose", "tensorboard_log", "_init_setup_model")
#: Arguments that may change from one process to the next: what they decided is in the state, or they change no result
_FREE = ("seed", "storage_device", "compile", "cuda_graph", "stats_window_size")
#: What must be the same in whatever model takes a checkpoint's state
_MUST_MATCH = (
    "observation_space",
    "action_space",
    "n_envs",
    "n_steps",
    "gamma",
    "buffer_size",
    "alpha",
    "prioritized",
    "dueling",
    "noisy",
    "n_atoms",
    "v_min",
    "v_max",
)


def save(model: RainbowDQN, folder: str | os.PathLike[str], keep: int = 2) -> Path:
    """
    Write a checkpoint: networks, optimiser, counters, replay buffer, all random generators, and the environments where their
    state can be read (ALE, classic control, whatever holds plain data or has ``state_dict`` and ``load_state_dict``).

    To go on exactly, save between two rollouts, as ``ResumableCheckpointCallback`` does.

    Of a large replay buffer's images, only what changed since the checkpoint before is written again; for the rest the two
    share files. If such a file is damaged on the disk, so are both; the first checkpoint of a process shares nothing.

    :param model: what to save
    :param folder: where checkpoints are kept. One process may write to it at a time
    :param keep: how many are kept
    :return: the checkpoint's own folder
    :raises ValueError: if ``keep`` is less than 1, or the format of the newest checkpoint there is another version's
    :raises OSError: if it cannot be written, the disk being full for example; the checkpoints before it are untouched
    """
    check_integer("keep", keep, 1)
    with WRITER:
        return write_snapshot(take_snapshot(model), Path(folder), keep)


class Snapshot(NamedTuple):
    """
    What a checkpoint will hold. Arrays may be the model's own memory, until ``copied``. Whoever takes one holds ``WRITER``
    until it is written: what it need not write is in the newest checkpoint.
    """

    step: int
    content: dict[str, Json]
    arrays: Arrays
    #: Names of arrays, and what changes when they do
    tags: dict[str, str]

    def unchanged(self, folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
        """
        :param folder: where checkpoints are kept
        :return: those arrays that need not be written: their files in the newest checkpoint, and its manifest's entries
        """
        previous = newest_manifest(folder)
        if previous is None:
            return {}
        path, manifest = previous
        # The tag does not tell the length: the last part grows while the ring fills
        return {
            name: (path / file, manifest["files"][file])
            for name, tag in self.tags.items()
            if (manifest["tags"].get(name), manifest["lengths"].get(name)) == (tag, len(self.arrays[name]))
            for file in [manifest["large"][name]]
        }

    def copied(self, folder: Path, most: int) -> "Snapshot | None":
        """
        :param folder: where checkpoints are kept
        :param most: bytes that may be copied
        :return: a snapshot that training does not change, with those arrays copied that must be written; None if those are
            more bytes
        """
        unchanged = self.unchanged(folder)
        if sum(array.nbytes for name, array in self.arrays.items() if name not in unchanged) > most:
            return None
        return self._replace(
            arrays={name: array if name in unchanged else array.copy() for name, array in self.arrays.items()}
        )


def take_snapshot(model: RainbowDQN) -> Snapshot:
    """
    :param model: what to save
    :return: its state now
    """
    arrays: Arrays = {}
    replay, tags = _replay_state(model.replay_buffer, arrays)
    content: dict[str, Json] = {
        "must_match": _fingerprint(model),
        "settings": _settings(model, arrays),
        "progress": encode({name: getattr(model, name) for name in PROGRESS}, arrays, "progress"),
        "policy": encode(dict(model.policy.state_dict()), arrays, "policy"),
        "noise": encode(_noise(model), arrays, "noise"),
        "optimizer": encode(model.policy.optimizer.state_dict(), arrays, "optimizer"),
        "replay": replay,
        "generators": encode(_generators(model), arrays, "generators"),
        "env": _env_state(model.env, arrays),
        "statistics": encode_object(_statistics(model), arrays, "statistics"),
    }
    return Snapshot(
        model.num_timesteps, content, arrays, {name: tag for name, tag in tags.items() if arrays[name].nbytes >= OWN_FILE_FROM}
    )


def write_snapshot(snapshot: Snapshot, folder: Path, keep: int) -> Path:
    """
    :param snapshot: what to write
    :param folder: where checkpoints are kept
    :param keep: how many are kept
    :return: the checkpoint's own folder
    :raises OSError: if it cannot be written; the checkpoints before it are untouched
    """
    unchanged = snapshot.unchanged(folder)
    small, large, known = {}, {}, {}
    with writing(folder, snapshot.step, keep) as (temporary, final):
        for i, (name, array) in enumerate(with_progress(snapshot.arrays, unchanged)):
            if array.nbytes < OWN_FILE_FROM:
                small[name] = array
                continue
            file = large[name] = f"array_{i:05d}.npy"
            if name in unchanged:
                before, known[file] = unchanged[name]
                link(before, temporary / file)
                if (temporary / file).stat().st_size != known[file]["size"]:
                    raise CorruptCheckpointError(f"{before}: not as long as it was written. Save to another folder")
            else:
                np.save(temporary / file, array, allow_pickle=False)
        np.savez(temporary / "arrays.npz", **small)
        (temporary / "state.json").write_text(json.dumps(snapshot.content))
        lengths = {name: len(snapshot.arrays[name]) for name in large}
        versions = {name: importlib.metadata.version(name) for name in ("sb3-rainbow", "stable-baselines3", "torch", "numpy")}
        about = {"step": snapshot.step, "versions": versions, "large": large, "lengths": lengths, "tags": snapshot.tags}
        write_manifest(temporary, about, known)
    return final


def load(folder: str | os.PathLike[str], env: Any = None, device: th.device | str = "auto", **settings: Any) -> RainbowDQN:
    """
    Make the model that was saved, at the state in which it was. Training goes on by
    ``model.learn(total - model.num_timesteps, reset_num_timesteps=False)``.

    :param folder: where checkpoints are kept, the newest intact one is taken; or a checkpoint's own folder
    :param env: environment like the one that was used; without it the model can only predict
    :param device: device of the networks
    :param settings: arguments of the constructor to set anew; those that are functions or classes from elsewhere are not in
        the checkpoint and must be given
    :return: the model
    :raises FileNotFoundError: if there is no intact checkpoint
    :raises ValueError: if the environment is not like the one that was used; both values are named. If an argument is not
        stored and not given, or the format is another version's
    :raises CorruptCheckpointError: if ``folder`` is a checkpoint's own, and it is damaged; it names the file
    """
    path = _find(Path(folder))
    content, arrays = _read(path)
    plain, given = content["settings"]["plain"], {*settings, *_NOT_SETTINGS}
    stored = {name: decode(node, arrays) for name, node in plain.items() if name not in given}
    missing = {name: text for name, text in content["settings"]["not_stored"].items() if name not in settings}
    if missing:
        raise ValueError(f"{path}: not stored, as it is no plain data: {missing}. Give it to load() as a keyword argument")
    policy = settings.pop("policy", None) or decode(content["settings"]["policy"], arrays)
    model = RainbowDQN(policy, env, device=device, _init_setup_model=False, **(stored | settings))
    if env is None:
        for name, space in content["settings"]["spaces"].items():
            setattr(model, name, decode_space(space, arrays))
        model.n_envs = content["settings"]["n_envs"]
    model._setup_model()
    _restore(model, path, content, arrays)
    return model


def restore(model: RainbowDQN, folder: str | os.PathLike[str]) -> Path:
    """
    Bring a model that was made with the same settings to the state of a checkpoint.

    :param model: the model, with its environment
    :param folder: where checkpoints are kept, the newest intact one is taken; or a checkpoint's own folder
    :return: the checkpoint that was taken
    :raises FileNotFoundError: if there is no intact checkpoint
    :raises ValueError: if the model differs from the one that was saved; both values are named, and nothing is changed. If the
        format is another version's
    :raises CorruptCheckpointError: if ``folder`` is a checkpoint's own, and it is damaged; it names the file
    """
    path = _find(Path(folder))
    restore_verified(model, path)
    return path


def restore_verified(model: RainbowDQN, path: Path) -> None:
    """
    ``restore`` without another look at whether the checkpoint is intact.

    :param model: the model, with its environment
    :param path: a checkpoint that has been verified
    :raises ValueError: if the model differs from the one that was saved; both values are named, and nothing is changed
    """
    content, arrays = _read(path)
    _check_settings(model, path, content["settings"], arrays)
    _restore(model, path, content, arrays)


def _check_settings(model: RainbowDQN, path: Path, stored: Json, arrays: Arrays) -> None:
    """Compare the arguments; of those that are no plain data, what they are."""
    given_arrays: Arrays = {}
    given = _values(_settings(model, given_arrays), given_arrays)
    for name, there in _values(stored, arrays).items():
        here, there = _python(given.get(name)), _python(there)
        if name in _FREE or repr(here) == repr(there):  # so that arrays can be compared
            continue
        if type(here) in (int, float, dict) and here == there:  # 10 and 10.0; keys in another order
            continue
        hint = "" if name in _MUST_MATCH else f". load() of sb3_rainbow.checkpoint takes another {name}"
        raise ValueError(f"{name}={here!r} in the model, {there!r} in the checkpoint {path}: must be the same{hint}")


def _python(value: Any) -> Any:
    """NumPy's numbers as Python's: they are as good."""
    return value.item() if isinstance(value, np.generic) else value


def _values(settings: Json, arrays: Arrays) -> dict[str, Any]:
    plain = {name: decode(value, arrays) for name, value in settings["plain"].items() if name != "learning_rate"}
    first, *others = settings["learning_rates"]
    # RL Zoo makes a function of every number
    rates = first if others == [first] * len(others) else settings["learning_rates"]
    return plain | settings["not_stored"] | {"learning_rate": rates}


def _restore(model: RainbowDQN, path: Path, content: dict[str, Json], arrays: Arrays) -> None:
    given = _fingerprint(model)
    for name, stored in content["must_match"].items():
        if given.get(name) != stored:
            raise ValueError(f"{name}={given.get(name)} in the model, {stored} in the checkpoint {path}: must be the same")
    kept, stored_kept = [*_statistics(model)], content["statistics"]["keys"]
    if model.env is not None and kept != stored_kept:
        raise ValueError(f"VecNormalize: {kept} in the model, {stored_kept} in the checkpoint {path}: must be the same")
    policy = decode(content["policy"], arrays)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.policy.state_dict().items()}
    for name in sorted(shapes.keys() | policy.keys()):
        here, there = shapes.get(name), tuple(policy[name].shape) if name in policy else None
        if here != there:
            raise ValueError(f"policy_kwargs: {name} has the shape {here} in the model, {there} in the checkpoint {path}")
    model.policy.load_state_dict(policy)
    for name, noise in decode(content["noise"], arrays).items():
        model.policy.get_buffer(name).copy_(noise)
    model.policy.optimizer.load_state_dict(decode(content["optimizer"], arrays))
    progress = copy.deepcopy(decode(content["progress"], arrays))  # not the file's memory
    for name in PROGRESS:
        if progress[name] is not None:  # what nothing was learned with stays as the training's start has made it
            setattr(model, name, progress[name])
    if isinstance(model.replay_buffer, PrioritizedNStepReplayBuffer):
        model.replay_buffer.load_state(decode(content["replay"], arrays))
    elif model.replay_buffer is not None:
        restore_object(model.replay_buffer, content["replay"], arrays, "replay")
    if model.env is not None:
        problem = content["env"].get("unreadable") or ("no episode was running" if progress["_last_obs"] is None else "")
        _restore_env(model, content["env"], problem, content["statistics"], arrays)
    _set_generators(model, decode(content["generators"], arrays))


def _restore_env(model: RainbowDQN, stored: Json, problem: str, stored_statistics: Json, arrays: Arrays) -> None:
    assert model.env is not None
    if not problem:
        model.env.reset()
        try:
            restore_object(model.env, stored["state"], arrays, "env")
        except Exception as error:  # from whatever class the environment is
            problem = f"{type(error).__name__}: {error}"
    if problem:
        # As at the start of a training, but that normalisation has seen what it has seen
        restore_object(_statistics(model), stored_statistics, arrays, "statistics")
        buffer: Any = model.replay_buffer
        if hasattr(buffer, "truncate_last_trajectory"):
            buffer.truncate_last_trajectory()
        elif isinstance(buffer, NStepReplayBuffer) and buffer.size() > 0:  # SB3's: its windows go on until they meet this
            last = buffer.pos - 1
            buffer.timeouts[last] = np.maximum(buffer.timeouts[last], 1 - buffer.dones[last])
        if model.seed is not None:  # not the first episodes of the training once more
            model.env.seed((model.seed + model.num_timesteps) % 2**31)
        model._last_obs = model.env.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
        if model._vec_normalize_env is not None:
            model._last_original_obs = model._vec_normalize_env.get_original_obs()
        logging.getLogger(__name__).warning(
            "The environments could not be restored (%s): their episodes are closed as truncated, new ones begin", problem
        )


def _fingerprint(model: RainbowDQN) -> dict[str, Json]:
    """What a model that takes over the state must have in common with the one that was saved."""
    values = {name: _python(getattr(model, name)) for name in _MUST_MATCH}
    others = {"algorithm": type(model).__qualname__, "policy": type(model.policy).__qualname__}
    others["replay_buffer"] = type(model.replay_buffer).__qualname__
    if model.replay_buffer is not None:  # it may have been loaded, with another size
        values["buffer_size"] = int(model.replay_buffer.buffer_size) * model.n_envs
    return others | {name: value if isinstance(value, bool | int | float) else str(value) for name, value in values.items()}


def _settings(model: RainbowDQN, arrays: Arrays) -> dict[str, Json]:
    """Arguments of the constructor, as far as they are data."""
    values = {
        name: getattr(model, f"_{name}" if name == "stats_window_size" else name)
        for name in inspect.signature(RainbowDQN.__init__).parameters
        if name not in ("self", *_NOT_SETTINGS)
    }
    values["train_freq"] = (model.train_freq.frequency, model.train_freq.unit.value)  # type: ignore[union-attr]
    plain, not_stored = {}, {}
    for name, value in values.items():
        try:
            plain[name] = encode(value, arrays, f"settings/{name}")
        except Unencodable as error:
            not_stored[name] = str(error)
    try:
        policy = encode(model.policy_class, arrays, "settings/policy")
    except Unencodable as error:
        policy, not_stored["policy"] = None, str(error)
    spaces = {name: encode_space(getattr(model, name), arrays, name) for name in ("observation_space", "action_space")}
    return {
        "plain": plain,
        "not_stored": not_stored,
        "policy": policy,
        "spaces": spaces,
        "n_envs": model.n_envs,
        "learning_rates": [float(model.lr_schedule(progress)) for progress in (1.0, 0.5, 0.0)],
    }


def _noise(model: RainbowDQN) -> dict[str, th.Tensor]:
    """Buffers that are in no ``state_dict``."""
    persistent = model.policy.state_dict().keys()
    return {name: buffer for name, buffer in model.policy.named_buffers() if name not in persistent}


def _generators(model: RainbowDQN) -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (SB3 draws from it)
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
        "action_space": model.action_space._np_random,
    }


def _set_generators(model: RainbowDQN, states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    th.set_rng_state(states["torch"])
    if len(states["cuda"]) == th.cuda.device_count() > 0:
        th.cuda.set_rng_state_all(states["cuda"])
    model.action_space._np_random = states["action_space"]


def _env_state(env: VecEnv | None, arrays: Arrays) -> Json:
    if env is None:
        return {"unreadable": "the model has no environment"}
    state, found = read_object(env, "env")
    if state is None:
        return {"unreadable": found}
    arrays |= found
    return {"state": state}


def _statistics(model: RainbowDQN) -> dict[str, Any]:
    """What VecNormalize has seen. The networks learned by it, so it is kept even where the environment cannot be read."""
    normalize = model._vec_normalize_env
    return {name: vars(normalize)[name] for name in ("obs_rms", "ret_rms") if normalize and name in vars(normalize)}


def _replay_state(buffer: ReplayBuffer | None, arrays: Arrays) -> tuple[Json, dict[str, str]]:
    """The replay buffer's state, and the tags of those of its arrays that have one."""
    if not isinstance(buffer, PrioritizedNStepReplayBuffer):
        return encode_object(buffer, arrays, "replay"), {}
    state = buffer.state()
    tags = {
        f"replay/observations/{key}/frames/{i}": tag
        for key, entry in state["observations"].items()
        for i, tag in enumerate(entry.get("tags", ()))
    }
    return encode(state, arrays, "replay"), tags


def _find(folder: Path) -> Path:
    if (folder / MANIFEST).exists():
        verify(folder)
        return folder
    path = latest(folder)
    if path is None:
        raise FileNotFoundError(f"{folder}: no intact checkpoint is there")
    return path


def _read(path: Path) -> tuple[dict[str, Json], Arrays]:
    """State and arrays of a checkpoint that has been verified; large arrays stay on the disk until they are copied."""
    manifest = read_manifest(path)
    file = path / "arrays.npz"
    try:
        with np.load(file, allow_pickle=False) as members:
            arrays = dict(members)
        for name, large in manifest["large"].items():
            file = path / large
            arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise CorruptCheckpointError(f"{file}: no plain arrays ({error})") from error
    return json.loads((path / "state.json").read_text()), arrays

"""Training goes on from a checkpoint as if it had never stopped, and a checkpoint survives whatever happens to its writer."""

import copy
import functools
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from resumable_training import all_halves, fingerprint, make_env, make_model
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_rainbow import PrioritizedNStepReplayBuffer, RainbowDQN, policies
from sb3_rainbow.checkpoint import CorruptCheckpointError, ResumableCheckpointCallback, latest, load, restore, save
from sb3_rainbow.checkpoint.encoding import Unencodable, _import, encode_object, restore_object
from sb3_rainbow.checkpoint.folder import MANIFEST, checkpoints, verify, write_manifest, writing

resource = pytest.importorskip("resource", reason="not on this system")
SCRIPT = Path(__file__).with_name("resumable_training.py")


def start(mode: str, folder: Path, steps: int = 400, *games: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), mode, str(folder), str(steps), *games]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*args) -> list[str]:
    process = start(*args)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output.splitlines()[-1].split()


def test_two_halves_in_two_processes_equal_the_whole(tmp_path):
    games = ["cartpole-1", "cartpole-4", "breakout-1", "breakout-4"]
    whole = all_halves("whole", tmp_path, 320, *games)
    assert run("first half", tmp_path, 320, *games) != whole
    assert run("second half", tmp_path, 320, *games) == whole
    assert len(set(whole)) == len(games)


def halfway(folder: Path, **settings) -> str:
    """Save in the middle of a training; return the hash at its end."""
    model = make_model("cartpole", 2, **settings)
    callback = ResumableCheckpointCallback(150, folder, keep=9)
    model.learn(300, callback=callback)
    return fingerprint(model)


def go_on(folder: Path, spoil=lambda model: None) -> str:
    first = sorted(folder.glob("step_*"))[0]
    model = load(first, make_env("cartpole", 2))
    spoil(model)
    model.learn(300 - model.num_timesteps, reset_num_timesteps=False)
    return fingerprint(model)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_steps": 1, "prioritized": False},  # SB3's own buffer
        {"noisy": "independent", "train_freq": 4, "gradient_steps": 2},
        {"n_atoms": 11, "v_min": 0, "v_max": 50},
        {"policy_kwargs": {"net_arch": [32], "activation_fn": th.nn.Tanh}},
    ],
    ids=str,
)
def test_any_settings_are_resumed(tmp_path, settings):
    whole = halfway(tmp_path, **settings)
    assert go_on(tmp_path) == whole


@pytest.mark.parametrize(
    "spoil",
    [
        lambda model: setattr(model, "_last_obs", model.env.reset()),
        lambda model: (random.seed(9), np.random.seed(9), th.manual_seed(9)),
        lambda model: model.action_space.seed(9),
        lambda model: model.replay_buffer.seed(9),
        lambda model: model.replay_buffer.update_priorities(np.arange(10), np.full(10, 50.0)),
    ],
    ids=["environment", "generators", "action space", "generator of the buffer", "priorities"],
)
def test_each_part_of_the_state_counts(tmp_path, spoil):
    settings = {"exploration_fraction": 1.0}
    whole = halfway(tmp_path, **settings)
    assert go_on(tmp_path) == whole
    assert go_on(tmp_path, spoil) != whole


def test_a_run_that_is_killed_and_started_again_ends_as_if_it_had_not(tmp_path):
    kills(tmp_path, n_kills=2)


@pytest.mark.slow
def test_a_run_that_is_killed_eight_times_ends_as_if_it_had_not(tmp_path):
    kills(tmp_path, n_kills=8)


def kills(folder: Path, n_kills: int) -> None:
    steps = 800 * n_kills
    generator = random.Random(0)
    for _ in range(n_kills):
        seen = checkpoints(folder)[-1:]
        process = start("resume", folder, steps)
        while checkpoints(folder)[-1:] == seen:  # it has gone on a little
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        # Names begin with the step
        assert not seen or checkpoints(folder)[-1].name > seen[0].name, "it began anew"
        time.sleep(generator.random() / 20)
        process.kill()
        process.communicate()
    assert run("resume", folder, steps) == run("whole", folder, steps, "cartpole-1")


def save_for_ever(model: RainbowDQN, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        model.num_timesteps += 1
        save(model, folder)


def interrupt_saves(folder: Path, times: int) -> None:
    model = make_model("cartpole", 1).learn(100)
    save(model, folder)
    generator = random.Random(0)
    interrupted = 0
    for i in range(times):
        # A fork: it saves what this process has, and starts in no time
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(model, folder))
        seen = checkpoints(folder)[-1:]
        process.start()
        deadline = time.monotonic() + 60
        while checkpoints(folder)[-1:] == seen:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(generator.random() / 10)
        if i % 4 > 0:  # not so often between two saves
            while not list(folder.glob(".writing*")):
                assert time.monotonic() < deadline
            time.sleep(generator.random() / 100)
        os.kill(process.pid, [signal.SIGKILL, signal.SIGTERM, signal.SIGINT][i % 3])
        process.join()
        interrupted += any(path.name.startswith(".writing") for path in folder.iterdir())
        before = model.num_timesteps
        model.num_timesteps = load(folder).num_timesteps
        assert model.num_timesteps >= before
        newest = max(int(path.name.split("_")[1]) for path in folder.glob("step_*"))
        assert newest - model.num_timesteps <= 1
    assert model.num_timesteps > 100 + times
    assert interrupted > times / 4, "most were hit while they were writing"


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_a_writer_killed_in_the_middle_leaves_a_checkpoint_that_loads(tmp_path):
    interrupt_saves(tmp_path, 20)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_two_hundred_writers_killed_in_the_middle_leave_a_checkpoint_that_loads(tmp_path):
    interrupt_saves(tmp_path, 200)


@pytest.fixture
def saved(tmp_path) -> Path:
    """Two checkpoints of a small model."""
    model = make_model("cartpole", 1).learn(60)
    save(model, tmp_path)
    model.learn(20, reset_num_timesteps=False)
    save(model, tmp_path)
    return tmp_path


def test_a_full_disk_leaves_the_checkpoint_before(saved):
    model = load(saved, make_env("cartpole", 1))
    before = latest(saved)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1_000, 50_000):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(OSError, match="(?i)file too large"):
                save(model, saved)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert latest(saved) == before
        assert len(list(saved.iterdir())) == 2, "the unfinished one is gone"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
def test_a_full_file_system_leaves_the_checkpoint_before(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr}")
    try:
        model = make_model("cartpole", 1, policy_kwargs={"net_arch": [32]}).learn(60)
        save(model, tmp_path)
        before = latest(tmp_path)
        (tmp_path / "filler").write_bytes(bytes(shutil.disk_usage(tmp_path).free - 20_000))
        for _ in range(20):
            with pytest.raises(OSError, match="No space left"):
                save(model, tmp_path)
            assert latest(tmp_path) == before
            load(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_damage_is_named_and_the_checkpoint_before_is_taken(saved):
    older, newer = sorted(saved.glob("step_*"))
    for file in sorted(newer.iterdir()):
        content = file.read_bytes()
        damages = [content[:size] for size in range(0, len(content), 1024)]
        middle = len(content) // 2
        damages.append(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        if file.name != MANIFEST:
            damages.append((older / "state.json").read_bytes() + b" ")
        for damage in damages:
            file.write_bytes(damage)
            with pytest.warns(RuntimeWarning, match=file.name):
                assert latest(saved) == older
            with pytest.raises(CorruptCheckpointError, match=file.name):
                load(newer)
        file.write_bytes(content)
    (newer / "arrays.npz").unlink()
    with pytest.warns(RuntimeWarning, match="arrays.npz: missing"):
        assert load(saved).num_timesteps == 64


def test_checkpoints_of_another_format_are_refused_and_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_rainbow.checkpoint.folder.FORMAT", 1)
    model = make_model("cartpole", 1)
    save(model, tmp_path)
    monkeypatch.undo()
    before = sorted(tmp_path.rglob("*"))
    for use in (
        lambda: load(tmp_path),
        lambda: save(model, tmp_path, keep=1),
        lambda: model.learn(50, callback=ResumableCheckpointCallback(20, tmp_path, resume=True)),
    ):
        with pytest.raises(ValueError, match=r"manifest.json: format 1, this version of sb3-rainbow reads and writes 4"):
            use()
    assert sorted(tmp_path.rglob("*")) == before


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def sign(checkpoint: Path) -> None:
    """Make the manifest true to the files, as someone who means harm would."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    about = {name: value for name, value in manifest.items() if name not in ("sha256", "format", "files")}
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, about, {})


def test_planted_code_does_not_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    newer = sorted(saved.glob("step_*"))[1]
    arrays, state = (newer / "arrays.npz").read_bytes(), (newer / "state.json").read_text()
    for planted in (pickle.dumps(Bomb()), b"\x93NUMPY" + pickle.dumps(Bomb())):
        (newer / "arrays.npz").write_bytes(planted)
        sign(newer)
        with pytest.raises(CorruptCheckpointError, match="arrays.npz"):
            load(newer)
    np.savez(newer / "arrays.npz", **{"policy/q_net": np.array([Bomb()], dtype=object)})
    sign(newer)
    with pytest.raises(CorruptCheckpointError, match="arrays.npz"):
        load(newer)
    (newer / "arrays.npz").write_bytes(arrays)
    # Modules may show classes from elsewhere
    monkeypatch.setattr(policies, "Foreign", type("Foreign", (th.nn.Module,), {"__module__": "elsewhere"}), raising=False)
    popen = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler:Popen"
    assert _import(popen) is subprocess.Popen
    assert _import("sb3_rainbow.export:Path") is Path
    shown = ("sb3_rainbow.zoo:sys.exit", "sb3_rainbow.export:Path", "sb3_rainbow.policies:Foreign", popen)
    others = ("os:system", "pathlib:Path", "torch.serialization:load", "torch.optim.nope:Adam", "sb3_rainbow.sweep.suite:Run")
    for name in (*others, *shown):
        changed = json.loads(state)
        kwargs = changed["settings"]["plain"]["policy_kwargs"]
        kwargs["features_extractor_class"] = {"!": "class", "of": name}  # it would be called with the observation space
        (newer / "state.json").write_text(json.dumps(changed))
        sign(newer)
        with pytest.raises(ValueError, match=f"class '{name}': only networks"):
            load(newer)
    for name in ("os:system", "pathlib:Path", "rl_zoo3.utils:StoreDict"):
        changed = json.loads(state)
        changed["settings"]["plain"]["learning_rate"] = {"!": "schedule", "class": name, "of": {}}
        (newer / "state.json").write_text(json.dumps(changed))
        sign(newer)
        with pytest.raises(ValueError, match="kind 'schedule'"):
            load(newer)
    changed = json.loads(state)
    changed["settings"]["spaces"]["observation_space"]["kind"] = "Text"
    (newer / "state.json").write_text(json.dumps(changed))
    sign(newer)
    with pytest.raises(ValueError, match="a space of the kind 'Text'"):
        load(newer)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("dtypes", [("<i8", "|O"), ("|O", "<i8"), ("<i8", [("pointer", "O")])], ids=str)
def test_bytes_are_not_taken_for_objects_nor_objects_for_bytes(dtypes):
    base, seen_as = dtypes
    numbers = np.ones(1, np.int64)
    of = {"!": "array", "of": "x"} if base == "<i8" else {"!": "objects", "of": [None], "shape": [1]}
    node = {"!": "view", "of": of, "dtype": seen_as, "shape": [1], "strides": [8], "offset": 0}
    with pytest.raises(ValueError, match="env: a view of objects"):
        restore_object(numbers, node, {"x": numbers}, "env")


def test_no_file_changes_what_an_environment_was_set_up_with():
    env, arrays = gym.make("CartPole-v1"), {}
    env.reset(seed=0)
    state = encode_object(env, arrays, "env")
    for planted in ({"spec": {"entry_point": "os:system"}}, {"observation_space": {"dtype": None}}):
        ((name, values),) = planted.items()
        kind = type(getattr(env.unwrapped, name)).__qualname__
        changed = copy.deepcopy(state)
        inner = changed
        while "env" in inner["of"]:
            inner = inner["of"]["env"]
        inner["of"][name] = {"!": "object", "class": kind, "of": values}
        before = repr(getattr(env.unwrapped, name))
        with pytest.raises(ValueError, match=f"{name} is .*, a setting: no checkpoint changes it"):
            restore_object(env, changed, arrays, "env")
        assert repr(getattr(env.unwrapped, name)) == before
    restore_object(env, state, arrays, "env")


def test_what_does_not_match_is_named_with_both_values(saved):
    others = {"n_steps": 5, "gamma": 0.5, "v_max": 7, "learning_rate": 0.5, "batch_size": 9, "double_q": False, "tau": 0.5}
    for name, value in others.items():
        model = make_model("cartpole", 1, **{name: value})
        before = fingerprint_of_parameters(model)
        with pytest.raises(ValueError, match=rf"{name}={value} in the model, .* in the checkpoint"):
            restore(model, saved)
        with pytest.raises(ValueError, match=rf"{name}={value} in the model"):
            model.learn(500, callback=ResumableCheckpointCallback(100, saved, resume=True))
        assert fingerprint_of_parameters(model) == before
        if name not in ("n_steps", "gamma", "v_max"):
            load(saved, **{name: value})
    with pytest.raises(ValueError, match=r"learning_rate=\[0.1, 0.05, 0.0\] in the model, 0.0001 in the checkpoint"):
        restore(make_model("cartpole", 1, learning_rate=lambda progress: 0.1 * progress), saved)
    for same in ({"learning_rate": lambda progress: 1e-4}, {"max_grad_norm": 10.0}, {"tau": 1}, {"stats_window_size": 9}):
        restore(make_model("cartpole", 1, **same), saved)
    with pytest.raises(ValueError, match=r"n_envs=2 in the model, 1 in the checkpoint"):
        load(saved, make_env("cartpole", 2))
    with pytest.raises(ValueError, match=r"observation_space=.* in the model, .* in the checkpoint"):
        load(saved, make_vec_env("MountainCar-v0"))
    with pytest.raises(ValueError, match=r"policy_kwargs={'net_arch': \[7\]} in the model, {} in the checkpoint"):
        restore(make_model("cartpole", 1, policy_kwargs={"net_arch": [7]}), saved)
    with pytest.raises(ValueError, match=r"policy_kwargs: q_net.* has the shape .* in the model, .* in the checkpoint"):
        load(saved, policy_kwargs={"net_arch": [7]})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(saved / "nowhere")


def fingerprint_of_parameters(model: RainbowDQN) -> list[float]:
    return [parameter.sum().item() for parameter in model.policy.parameters()]


def test_without_an_environment_the_model_predicts(saved):
    model, loaded = load(saved, make_env("cartpole", 1)), load(saved)
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert (model.predict(observations, deterministic=True)[0] == loaded.predict(observations, deterministic=True)[0]).all()
    assert loaded.action_space == model.action_space
    assert loaded.observation_space == model.observation_space


def test_entries_of_an_observation_keep_their_order(tmp_path):
    class Ordered(Die):
        observation_space = spaces.Dict([("b", spaces.Discrete(3)), ("a", spaces.Discrete(3))])

    model = RainbowDQN("MultiInputPolicy", DummyVecEnv([Ordered]), buffer_size=50).learn(20)
    save(model, tmp_path)
    assert [*load(tmp_path).observation_space.spaces] == ["b", "a"]


def test_what_is_no_data_must_be_given_again(tmp_path):
    save(make_model("cartpole", 1, learning_rate=lambda progress: 1e-3 * progress), tmp_path)
    with pytest.raises(ValueError, match=r"learning_rate.*load\(\)"):
        load(tmp_path)
    load(tmp_path, learning_rate=1e-3)


def test_schedules_of_sb3_and_rl_zoo_need_not_be_given_again(tmp_path):
    from rl_zoo3.utils import SimpleLinearSchedule

    linear = LinearSchedule(1e-3, 1e-4, end_fraction=0.5)
    for schedule in (ConstantSchedule(1e-3), linear, FloatSchedule(linear), SimpleLinearSchedule(1e-3)):
        folder = save(make_model("cartpole", 1, learning_rate=schedule), tmp_path)
        loaded = load(folder).learning_rate
        assert type(loaded) is type(schedule)
        assert [loaded(progress) for progress in (1, 0.8, 0.3, 0)] == [schedule(progress) for progress in (1, 0.8, 0.3, 0)]
        assert load(folder, learning_rate=0.1).learning_rate == 0.1


class Secretive(gym.Wrapper):
    """Its state is in a place that cannot be read."""

    def __init__(self, env):
        super().__init__(env)
        self.secret = (i for i in range(1000))

    def step(self, action):
        next(self.secret)
        return super().step(action)


class Slotted:
    __slots__ = ("count",)


class Half(Slotted):
    """Has attributes, and something beside them."""


class Number(float):
    """Has attributes, and is a number."""


def test_what_an_object_has_beside_its_attributes_is_not_lost_without_a_word(tmp_path):
    tools = [functools.partial(int, base=2), functools.lru_cache(int), np.add, np.mean]
    env = SimpleNamespace(tools=tools, nested=SimpleNamespace(count=3))
    with (tmp_path / "log").open("w") as env.log:
        node = encode_object(env, {}, "env")
        env.nested.count = 4
        restore_object(env, node, {}, "env")
        assert env.nested.count == 3
        for env.half in (Half(), Number(3)):
            with pytest.raises(Unencodable, match=rf"env.half is .*test_checkpoint.{type(env.half).__name__}"):
                encode_object(env, {}, "env")


def test_objects_that_are_one_only_before_the_environment_is_used_become_two():
    env = SimpleNamespace(first=Part(Part(0)))
    env.state = Part(Part(5))
    node = encode_object(env, {}, "env")
    fresh = SimpleNamespace(first=Part(Part(1)))
    fresh.state = fresh.first
    restore_object(fresh, node, {}, "env")
    assert (fresh.first.value.value, fresh.state.value.value) == (0, 5)
    node = encode_object(SimpleNamespace(first=th.nn.Flatten(), state=th.nn.Flatten()), {}, "env")
    fresh.state = fresh.first = th.nn.Flatten()
    with pytest.raises(ValueError, match=r"^env.state is env.first: in the checkpoint they are two"):
        restore_object(fresh, node, {}, "env")


@pytest.mark.parametrize("now", [sum, None])
def test_a_function_in_place_of_another_is_no_restored_state(now):
    node = encode_object(SimpleNamespace(mode=len), {}, "env")
    restore_object(SimpleNamespace(mode=len), node, {}, "env")
    with pytest.raises(ValueError, match=r"^env.mode is .*: in the checkpoint it is len"):
        restore_object(SimpleNamespace(mode=now), node, {}, "env")


class Confused(gym.Wrapper):
    """Its own account of its state fails."""

    def state_dict(self):
        raise LookupError("no state here")

    load_state_dict = None


def test_an_error_of_an_environments_own_state_stops_no_training(tmp_path, caplog):
    model = RainbowDQN("MlpPolicy", DummyVecEnv([lambda: Confused(gym.make("CartPole-v1"))]), buffer_size=200, seed=0)
    model.learn(60, callback=ResumableCheckpointCallback(20, tmp_path))
    load(tmp_path, DummyVecEnv([lambda: Confused(gym.make("CartPole-v1"))]))
    assert [record.message for record in caplog.records if "LookupError: no state here" in record.message]


def test_where_the_environment_cannot_be_read_the_learner_goes_on(tmp_path, caplog):
    env = DummyVecEnv([lambda: Secretive(gym.make("CartPole-v1"))])
    model = RainbowDQN("MlpPolicy", env, buffer_size=200, learning_starts=20, seed=0).learn(60)
    running = model.replay_buffer.dones.reshape(-1)[model.replay_buffer.pos - 1] == 0
    assert running
    save(model, tmp_path)
    env = DummyVecEnv([lambda: Secretive(gym.make("CartPole-v1"))])
    loaded = load(tmp_path, env)
    assert fingerprint_of_parameters(loaded) == fingerprint_of_parameters(model)
    assert (loaded.replay_buffer.observations == model.replay_buffer.observations).all()
    assert [record.message for record in caplog.records if "secret" in record.message and "truncated" in record.message]
    last = loaded.replay_buffer.pos - 1
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.replay_buffer.timeouts.reshape(-1)[last] == 1
    assert loaded.num_timesteps == 100


def test_windows_of_sb3s_n_step_buffer_end_where_the_environment_could_not_be_read(tmp_path):
    settings = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": {"n_steps": 3}, "learning_starts": 20}
    env = DummyVecEnv([lambda: Secretive(gym.make("CartPole-v1"))])
    model = RainbowDQN("MlpPolicy", env, buffer_size=200, seed=0, **settings).learn(60)
    last = model.replay_buffer.pos - 1
    running = model.replay_buffer.dones[last] == 0
    assert running
    save(model, tmp_path)
    loaded = load(tmp_path, DummyVecEnv([lambda: Secretive(gym.make("CartPole-v1"))]))
    assert loaded.replay_buffer.timeouts[last] == 1
    assert (loaded.replay_buffer.timeouts[:last] == model.replay_buffer.timeouts[:last]).all()


def test_the_callback_goes_on_with_new_episodes_where_the_environment_cannot_be_read(tmp_path):
    for total in (60, 100):
        env = DummyVecEnv([lambda: Secretive(gym.make("CartPole-v1"))])
        model = RainbowDQN("MlpPolicy", env, buffer_size=200, learning_starts=20, seed=0)
        model.learn(total, callback=ResumableCheckpointCallback(20, tmp_path, resume=True))
        assert model.num_timesteps == total
    assert model.replay_buffer.size() == 100
    assert model.replay_buffer.timeouts[59] == 1


def stopped(_locals, _globals) -> bool:
    raise KeyboardInterrupt


@pytest.mark.parametrize("steps", [0, 10, 60])
def test_a_checkpoint_made_after_an_interrupt_or_before_all_steps_is_resumed_with_new_episodes(tmp_path, steps):
    def make() -> RainbowDQN:
        return RainbowDQN("MlpPolicy", "CartPole-v1", buffer_size=200, learning_starts=20, train_freq=1, seed=0)

    model = make()
    if steps > 0:
        model.learn(steps)
        with pytest.raises(KeyboardInterrupt):
            model.learn(steps, reset_num_timesteps=False, callback=stopped)
    save(model, tmp_path)
    ended = model.replay_buffer.dones[: model.replay_buffer.pos, 0].sum()
    resumed = make()
    resumed.learn(100, callback=ResumableCheckpointCallback(1000, tmp_path, resume=True))
    assert resumed.num_timesteps == 100
    assert resumed.replay_buffer.dones[model.replay_buffer.pos - 1, 0] == (steps > 0)
    assert resumed.replay_buffer.dones[: model.replay_buffer.pos, 0].sum() >= ended


class Drawing(Secretive):
    """Its first observation is a number that it draws."""

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return np.full_like(obs, self.np_random.random()), info


def test_training_does_not_see_its_first_episodes_again_and_again_where_the_environment_cannot_be_read(tmp_path):
    def first_observations(*steps: int) -> Iterator[float]:
        for step in steps:
            save(RainbowDQN("MlpPolicy", env(), buffer_size=200, seed=0).learn(step), tmp_path / str(step))
            yield load(tmp_path / str(step), env())._last_obs[0, 0].item()

    def env() -> DummyVecEnv:
        return DummyVecEnv([lambda: Drawing(gym.make("CartPole-v1"))])

    start = env()
    start.seed(0)
    assert len({start.reset()[0, 0].item(), *first_observations(30, 40)}) == 3
    assert [*first_observations(30)] == [*first_observations(30)]


class Mood(Enum):
    CALM = 1
    WILD = 2


class Pair(NamedTuple):
    first: int
    second: np.ndarray


class Part:
    def __init__(self, value):
        self.value = value


class Intricate(gym.Env):
    """State of all kinds, some of it shared."""

    observation_space = spaces.Box(-9, 9, (3,))
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.start = np.zeros(3)
        self.state = self.start  # step() makes a new one
        self.whole = np.zeros(2, int)
        self.grid = np.zeros((2, 3))
        self.column = self.grid[::-1, 1]
        self.tail = np.arange(4.0)[1:]  # of an array that is nowhere else
        self.last = self.tail[-1:]
        self.names = np.array([None, "a", 1, 2.0], dtype=object).reshape(2, 2)
        self.by_column = np.asfortranarray(np.ones((2, 3)))[0]
        self.parts = [Part(0), Part(1)]
        self.current = self.parts[0]
        self.mood = Mood.CALM
        self.pair = Pair(0, np.zeros(2))
        self.dice = random.Random(5)
        self.generator = np.random.default_rng(5)
        self.same_generator = self.generator
        self.counts = Counter()
        self.seen = defaultdict(list)
        self.recent = deque(maxlen=3)
        self.later = {}
        self.mixed = {"function": len, "number": 0, 5: Part(2), "list": [Part(3), 1]}
        self.draw = np.random.default_rng(6).random  # of a generator that is nowhere else
        self.roll = self.dice.random
        self.shared_draw = np.random.random
        for part in self.parts:
            part.others = self.parts  # in a circle
        self.cells = {(0, 0): Part(4)}
        self.cells[0, 0].grid = self.cells

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.start
        return self._obs(), {}

    def _obs(self):
        return np.clip(self.state, -9, 9).astype(np.float32)

    def step(self, action):
        noise = self.same_generator.normal() + self.generator.normal() + self.dice.random() + self.draw() - self.roll()
        self.cells[0, 0].grid[0, 0].value += 1
        self.state = self.state + noise * self.current.value + len(self.recent) / 9 + self.mixed["number"] / 99
        self.whole = self.state[:2] * 0.5  # now of another dtype
        self.column += 1
        self.last *= -1
        self.current = self.parts[int(action)]
        self.parts[1].value += 0.25
        self.mood = Mood.WILD if self.mood is Mood.CALM else Mood.CALM
        self.pair = Pair(self.pair.first + 1, self.pair.second + self.mood.value)
        self.counts[int(action)] += 1
        self.seen[int(action)].append(noise)
        self.recent.append(noise)
        self.later.setdefault("recent", deque(maxlen=2)).append(noise)
        self.mixed["number"] += 1
        self.mixed[5].value += self.mixed["list"][0].value
        self.mixed["list"][1] += 1
        reward = self.pair.second.sum() % 3 + self.counts[1] % 2 + self.mixed[5].value % 2 + self.whole.sum() % 1
        reward += self.grid.sum() % 5 + self.tail.sum() + sum(self.later["recent"]) + self.cells[0, 0].value % 3
        return self._obs(), float(reward), bool(abs(self.state).max() > 8), False, {}


def test_state_of_all_kinds_is_restored(tmp_path):
    model = RainbowDQN("MlpPolicy", DummyVecEnv([Intricate, Intricate]), buffer_size=200, learning_starts=20, seed=0).learn(50)
    save(model, tmp_path)
    model.learn(100, reset_num_timesteps=False)
    env = DummyVecEnv([Intricate, Intricate])
    loaded = load(tmp_path, env)
    first = env.envs[0]
    assert first.generator is first.same_generator
    assert first.current in first.parts
    assert type(first.seen) is defaultdict
    assert (first.start == 0).all()
    assert np.shares_memory(first.grid, first.column)
    assert np.shares_memory(first.tail, first.last)
    assert not np.shares_memory(first.grid, first.tail)
    assert first.roll.__self__ is first.dice
    assert first.draw.__self__ is not first.generator
    assert first.shared_draw == np.random.random
    assert first.parts[1].others is first.parts
    assert first.cells[0, 0].grid is first.cells
    loaded.learn(100, reset_num_timesteps=False)
    assert fingerprint(loaded) == fingerprint(model)


class Deck(list):
    pass


@pytest.mark.parametrize("kind", ["list", "masked", "legacy"])
def test_what_would_be_lost_is_unreadable(kind):
    env = gym.make("CartPole-v1")
    env.unwrapped.extra = {
        "list": Deck([1, 2]),
        "masked": np.ma.masked_array([1, 2], mask=[True, False]),
        "legacy": np.random.RandomState(0).rand,
    }[kind]
    if kind == "list":
        encode_object(env, {}, "env")  # it has nothing but items
        env.unwrapped.extra.drawn = 3
    with pytest.raises(Unencodable, match=r"env.*\.extra"):
        encode_object(env, {}, "env")


class Shown(dict):
    """Its items are its attributes too."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        setattr(self, key, value)


def test_containers_whose_attributes_follow_are_restored(tmp_path):
    np.save(tmp_path / "prices.npy", np.arange(3.0))
    state = SimpleNamespace(weights=th.nn.Linear(2, 1).state_dict(), shown=Shown(), arrays={})
    state.prices = np.load(tmp_path / "prices.npy", mmap_mode="r")
    state.last = state.prices[1:]
    fresh = copy.deepcopy(state)
    state.weights["bias"] += 1
    state.shown["count"] = 5
    restore_object(fresh, encode_object(state, state.arrays, "env"), dict(state.arrays), "env")
    assert th.equal(fresh.weights["bias"], state.weights["bias"])
    assert fresh.weights._metadata == state.weights._metadata
    assert fresh.shown == {"count": fresh.shown.count} == {"count": 5}
    assert fresh.prices.tolist() == [0, 1, 2]
    assert fresh.last.tolist() == [1, 2]


class Hooked(Secretive):
    """It says itself what its state is."""

    def __init__(self, env):
        super().__init__(env)
        self.count = 0
        self.seen = np.zeros(1000)

    def step(self, action):
        self.count += 1
        self.seen[self.count] += 1
        return super().step(action)

    def state_dict(self):
        return {"count": self.count, "seen": self.seen}

    def load_state_dict(self, state):
        self.count, self.seen = state["count"], state["seen"]


def test_an_environment_may_say_itself_what_its_state_is(tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_rainbow.checkpoint.state.OWN_FILE_FROM", 1000)  # it has a file of its own
    model = RainbowDQN("MlpPolicy", DummyVecEnv([lambda: Hooked(gym.make("CartPole-v1"))]), buffer_size=200, seed=0).learn(60)
    save(model, tmp_path)
    env = DummyVecEnv([lambda: Hooked(gym.make("CartPole-v1"))])
    loaded = load(tmp_path, env)
    assert env.get_attr("count") == [60]
    loaded.learn(12, reset_num_timesteps=False)
    assert env.get_attr("seen")[0][:74].tolist() == [0, *[1] * 72, 0]


def test_normalisation_is_part_of_the_environment(tmp_path):
    model = RainbowDQN("MlpPolicy", VecNormalize(make_env("cartpole", 2)), buffer_size=200, seed=0).learn(100)
    save(model, tmp_path)
    mean, variance = model.env.obs_rms.mean.copy(), model.env.ret_rms.var
    model.learn(60, reset_num_timesteps=False)
    loaded = load(tmp_path, VecNormalize(make_env("cartpole", 2)))
    assert (loaded.env.obs_rms.mean == mean).all()
    assert loaded.env.ret_rms.var == variance
    loaded.learn(60, reset_num_timesteps=False)
    assert fingerprint(loaded) == fingerprint(model)


@pytest.mark.parametrize("norm_obs", [True, False])
def test_normalisation_is_kept_where_the_environment_cannot_be_read(tmp_path, norm_obs):
    def env() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: Secretive(gym.make("CartPole-v1"))]), norm_obs=norm_obs)

    model = RainbowDQN("MlpPolicy", env(), buffer_size=200, learning_starts=20, seed=0).learn(100)
    save(model, tmp_path)
    loaded = load(tmp_path, env())
    names = ("obs_rms", "ret_rms") if norm_obs else ("ret_rms",)
    for before, after in ((getattr(m.env, name) for m in (model, loaded)) for name in names):
        assert after is not before
        assert before.count <= after.count <= before.count + 1  # the first observation of the new episode
        assert np.allclose(after.mean, before.mean, atol=0.1)
    assert loaded.env.ret_rms.var == model.env.ret_rms.var
    with pytest.raises(ValueError, match=r"VecNormalize: \[\] in the model, \[.*'ret_rms'\] in the checkpoint"):
        load(tmp_path, env().venv)


class Die(gym.Env):
    """Two entries of the same size."""

    observation_space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Discrete(3)})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"a": 0, "b": 1}, {}

    def step(self, action):
        return {"a": int(action), "b": int(self.np_random.integers(3))}, float(action), False, False, {}


GOAL = spaces.Box(-9, 9, (2,))


class GoalEnv(gym.Env):
    observation_space = spaces.Dict({"observation": spaces.Box(-9, 9, (2,)), "achieved_goal": GOAL, "desired_goal": GOAL})
    action_space = spaces.Discrete(3)

    def __init__(self):
        self.t = 0

    def _obs(self):
        here = np.full(2, self.t % 7, np.float32)
        return {"observation": here, "achieved_goal": here, "desired_goal": np.ones(2, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        self.t += 1
        return self._obs(), -1.0, False, self.t % 10 == 0, {}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return -np.linalg.norm(achieved_goal - desired_goal, axis=-1)


@pytest.mark.parametrize(
    ("env", "settings"),
    [(Die, {"prioritized": False, "n_steps": 1}), (GoalEnv, {"replay_buffer_class": HerReplayBuffer})],
    ids=["dict", "hindsight"],
)
def test_sb3s_own_buffers_are_resumed(tmp_path, env, settings):
    settings = {"buffer_size": 200, "learning_starts": 30, "seed": 0} | settings
    model = RainbowDQN("MultiInputPolicy", DummyVecEnv([env]), **settings).learn(60)
    assert not isinstance(model.replay_buffer, PrioritizedNStepReplayBuffer)
    save(model, tmp_path)
    model.learn(40, reset_num_timesteps=False)
    loaded = load(tmp_path, DummyVecEnv([env]))
    loaded.learn(40, reset_num_timesteps=False)
    assert fingerprint_of_parameters(loaded) == fingerprint_of_parameters(model)


def test_parts_of_the_replay_that_did_not_change_are_not_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_rainbow.replay.frames.PART_BYTES", 20 * 84 * 84)
    monkeypatch.setattr("sb3_rainbow.checkpoint.state.OWN_FILE_FROM", 10 * 84 * 84)
    model = make_model("breakout", 2, buffer_size=300, learning_starts=10_000).learn(400)  # around the ring
    first = save(model, tmp_path, keep=9)
    again = save(model, tmp_path, keep=9)
    model.learn(20, reset_num_timesteps=False)
    third = save(model, tmp_path, keep=9)
    files = {name for path, name in frames_of(first).items() if path.endswith(tuple("0123456789"))}
    assert len(files) > 10
    assert all(os.path.samefile(first / name, again / name) for name in files)
    changed = [name for name in files if not os.path.samefile(first / name, third / name)]
    assert 1 <= len(changed) <= 4
    loaded = load(third, make_env("breakout", 2))
    assert fingerprint(loaded) == fingerprint(model)
    # One that goes on from an older checkpoint writes other frames under the same numbers
    fork = load(first, make_env("breakout", 2))
    fork.learn(20, reset_num_timesteps=False)
    save(fork, tmp_path, keep=9)
    assert fingerprint(load(tmp_path, make_env("breakout", 2))) == fingerprint(fork)


def frames_of(checkpoint: Path) -> dict[str, str]:
    large = json.loads((checkpoint / MANIFEST).read_text())["large"]
    return {path: name for path, name in large.items() if "/frames/" in path}


class Interrupt(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == 77:
            raise KeyboardInterrupt
        return True


def test_an_interrupt_leaves_a_model_that_can_be_saved_and_the_last_checkpoint(tmp_path):
    model = make_model("cartpole", 1)
    callback = ResumableCheckpointCallback(30, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        model.learn(200, callback=[callback, Interrupt()])
    callback._finish()
    assert load(tmp_path).num_timesteps == 64
    model.save(tmp_path / "model")
    save(model, tmp_path)
    model.learn(50, reset_num_timesteps=False)


def test_two_that_write_into_one_folder_do_not_mix(tmp_path):
    def write_both():
        with writing(tmp_path, 5, keep=2) as (first, _):
            (first / "state.json").write_text("of the first")
            with writing(tmp_path, 6, keep=2) as (second, _):  # takes what the first writes for something left over
                (second / "state.json").write_text("of the second")
                with pytest.raises(FileNotFoundError):
                    (first / "more").write_text("of the first")
                write_manifest(second, {}, {})
            write_manifest(first, {}, {})

    with pytest.raises(FileNotFoundError):
        write_both()
    (written,) = tmp_path.iterdir()
    assert {path.name for path in written.iterdir()} == {"state.json", MANIFEST}
    assert (written / "state.json").read_text() == "of the second"


def test_a_reader_looks_again_if_all_is_replaced_meanwhile(tmp_path, monkeypatch):
    def write(step):
        with writing(tmp_path, step, keep=1) as (temporary, _):
            write_manifest(temporary, {}, {})

    def replaced(path):
        if path.name.split("_")[1] == f"{1:012d}":
            write(2)
        return verify(path)

    write(1)
    monkeypatch.setattr("sb3_rainbow.checkpoint.folder.verify", replaced)
    with pytest.warns(RuntimeWarning, match="not a manifest"):
        assert latest(tmp_path).name == f"step_{2:012d}_000002"


class Stopped(RainbowDQN):
    def td_errors(self, replay_data):
        if self.num_timesteps > 90:
            raise KeyboardInterrupt
        return super().td_errors(replay_data)


def test_an_update_that_is_interrupted_is_no_end_of_a_training(tmp_path):
    model = Stopped("MlpPolicy", make_env("cartpole", 1), learning_starts=30, buffer_size=200, seed=0)
    callback = ResumableCheckpointCallback(30, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        model.learn(200, callback=callback)
    assert not callback._in_rollout
    callback.on_training_end()  # as RL Zoo does
    assert [int(path.name.split("_")[1]) for path in checkpoints(tmp_path)] == [32, 64]
    # At an end the updates are done, or there are none
    for i, settings in enumerate(({}, {"learning_starts": 1000}, {"gradient_steps": 0})):
        RainbowDQN("MlpPolicy", "CartPole-v1", buffer_size=200, **settings).learn(
            120, callback=ResumableCheckpointCallback(1000, tmp_path / str(i))
        )
        assert [int(path.name.split("_")[1]) for path in checkpoints(tmp_path / str(i))] == [120]


def test_the_callback_hides_no_error_of_a_training_that_did_not_start(tmp_path):
    callback = ResumableCheckpointCallback(30, tmp_path)
    callback.on_training_end()  # as RL Zoo does, whatever happened
    assert not list(tmp_path.iterdir())


def test_only_the_last_ones_are_kept(tmp_path):
    make_model("cartpole", 1).learn(200, callback=ResumableCheckpointCallback(30, tmp_path, keep=3))
    assert [path.name.split("_")[1].lstrip("0") for path in sorted(tmp_path.iterdir())] == ["160", "192", "200"]
    for wrong in ({"keep": 0}, {"save_freq": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=0"):
            ResumableCheckpointCallback(**({"save_freq": 10, "folder": tmp_path} | wrong))


def test_the_callback_resumes_only_when_it_is_told_to(tmp_path):
    folder = tmp_path / "{env_id}_{seed}"
    first = make_model("cartpole", 1)
    first.learn(100, callback=ResumableCheckpointCallback(30, folder))
    assert (tmp_path / "CartPole-v1_1").is_dir()
    resumed = make_model("cartpole", 1)
    resumed.learn(160, callback=ResumableCheckpointCallback(1000, folder, resume=True))
    whole = make_model("cartpole", 1).learn(160)
    assert resumed.num_timesteps == 160
    assert resumed._n_updates == whole._n_updates
    # SB3's fps are those of this process
    assert resumed._num_timesteps_at_start == first.num_timesteps
    fresh = make_model("cartpole", 1)
    fresh.env.get_attr = lambda *_: pytest.fail("a worker may not be able to send this")
    fresh.learn(40, callback=ResumableCheckpointCallback(1000, tmp_path / "{seed}"))
    assert fresh.num_timesteps == 40


@pytest.mark.parametrize("saved", [True, False])
def test_numbers_of_numpy_are_numbers(tmp_path, saved):
    settings = [{"buffer_size": 100, "gamma": 0.9}, {"buffer_size": np.int64(100), "gamma": np.float64(0.9)}]
    save(make_model("cartpole", 1, **settings[saved]).learn(20), tmp_path)
    restore(make_model("cartpole", 1, **settings[not saved]), tmp_path)


def test_a_replay_that_was_loaded_with_another_size_is_named_and_can_be_gone_on_with(tmp_path):
    make_model("cartpole", 1, buffer_size=50).learn(60).save_replay_buffer(tmp_path / "replay")
    model = make_model("cartpole", 1, buffer_size=80)
    model.load_replay_buffer(tmp_path / "replay")
    save(model.learn(60), tmp_path)
    with pytest.raises(ValueError, match="buffer_size=80 in the model, 50 in the checkpoint"):
        load(tmp_path, make_env("cartpole", 1))
    loaded = load(tmp_path, make_env("cartpole", 1), buffer_size=50)
    assert loaded.replay_buffer.size() == 50


def test_the_callback_names_what_it_cannot_do(tmp_path):
    for folder in ("{algo}", "{", "{0}"):
        with pytest.raises(ValueError, match=f"folder='.*{re.escape(folder)}'"):
            ResumableCheckpointCallback(10, tmp_path / folder)
    with pytest.raises(ValueError, match="model=.*DQN.*RainbowDQN alone"):
        DQN("MlpPolicy", "CartPole-v1", buffer_size=100).learn(10, callback=ResumableCheckpointCallback(10, tmp_path))


class Mine(policies.MlpPolicy):
    """A policy of the user's own."""


def test_a_policy_of_the_users_own_trains_and_comes_back(tmp_path):
    model = RainbowDQN(Mine, "CartPole-v1", learning_starts=20, seed=0).learn(60)
    model.save(tmp_path / "model")
    assert type(RainbowDQN.load(tmp_path / "model").policy) is Mine
    save(model, tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"not stored, as it is no plain data: \{'policy': .*Mine.*Give it to load"):
        load(tmp_path / "checkpoints")
    loaded = load(tmp_path / "checkpoints", policy=Mine)
    assert type(loaded.policy) is Mine
    assert fingerprint_of_parameters(loaded) == fingerprint_of_parameters(model)


def test_files_are_copied_where_there_are_no_links_and_only_whole_ones_are_shared(tmp_path, monkeypatch):
    monkeypatch.setattr("sb3_rainbow.replay.frames.PART_BYTES", 20 * 84 * 84)
    monkeypatch.setattr("sb3_rainbow.checkpoint.state.OWN_FILE_FROM", 10 * 84 * 84)
    model = make_model("breakout", 1, buffer_size=300, learning_starts=10_000).learn(100)
    first = save(model, tmp_path)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    second = save(model, tmp_path)
    verify(second)
    files = frames_of(second).values()
    assert len(files) > 1
    assert not any(os.path.samefile(first / name, second / name) for name in files)
    for name in files:
        os.truncate(second / name, 10)
    with pytest.raises(CorruptCheckpointError, match="not as long as it was written. Save to another folder"):
        save(model, tmp_path)
    with pytest.warns(RuntimeWarning, match="10 bytes, .* were written. The checkpoint before it is taken"):
        assert latest(tmp_path) == first

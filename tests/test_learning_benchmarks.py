"""
The learning benchmarks: a report with means that can be checked by hand, nothing invented, the same file every time; an
evaluation whose film is of the game that it names.
"""

import csv
import functools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, HerReplayBuffer
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_rainbow import RainbowDQN
from sb3_rainbow.envs import AtariVecEnv
from sb3_rainbow.sweep.evaluation import EpsilonGreedy, evaluate, load_run

ROOT = Path(__file__).parents[1]
SUITE = {
    "envs": {"A-v0": 300, "B-v0": 300},
    "algorithms": {"dqn": {"algo": "dqn"}, "rainbow": {"algo": "rainbow"}},
    "seeds": [0, 1, 2, 3],
    "evaluation": {"n_games": 2},
    "reference": "dqn",
    "milestone": 2.5,
}
#: Mean score by algorithm and seed; the middle two of four make the interquartile mean
SCORES = {"dqn": [1.0, 2.0, 4.0, 100.0], "rainbow": [4.0, 6.0, 8.0, 90.0]}


def write_run(folder: Path, score: float) -> None:
    folder.mkdir(parents=True)
    with (folder / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("score",), (score - 1,), (score + 1,)])
    with (folder / "curve.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("step", "return", "seconds"), *((step, step / 100, 6 * step) for step in range(40, 301, 20))]
        )
    manifest = {"seconds": 3600, "commit": "0123456789abcdef", "dirty": False, "machine": "a machine"}
    manifest["evaluation"] = SUITE["evaluation"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@functools.cache
def main_of_report() -> Callable[[], None]:
    main = runpy.run_path(str(ROOT / "benchmarks/learning/report.py"))["main"]
    main.__globals__["REPETITIONS"] = 100  # of each bootstrap
    return main


def report(out: Path, *arguments: str) -> str:
    (out / "suites.yml").write_text(yaml.safe_dump({"tiny": SUITE}, sort_keys=False))
    command = ["report.py", "tiny", "--suites", str(out / "suites.yml"), "--out", str(out), *arguments]
    with patch.object(sys, "argv", command):
        main_of_report()()
    return (out / "tiny/report.md").read_text()


@pytest.fixture
def results(tmp_path):
    for label, scores in SCORES.items():
        for env in SUITE["envs"]:
            for seed, score in enumerate(scores):
                write_run(tmp_path / f"tiny/{label}-{env}-{seed}", score)
    return tmp_path


def test_a_run_that_ended_no_episode_takes_part(results):
    (results / "tiny/dqn-A-v0-0/curve.csv").write_text("step,return,seconds\n")
    assert "7.5 hours" in report(results)


def test_interquartile_means_are_those_of_the_middle_half(results):
    text = report(results)
    assert "# tiny: 16 of 16 runs" in text
    assert "8.0 hours" in text
    assert "0123456789;" in text
    for env in SUITE["envs"]:
        assert f"| {env} | dqn | 4 | 3.00 | " in text
        assert f"| {env} | rainbow | 4 | 7.00 | " in text
    # An episode that ends at step s returns s / 100, every 20 steps; a point of the curve is a stretch of 10. In the last
    # three stretches end the episodes of 280 and 300
    assert text.count("| 1.0, 2.0, 4.0, 100.0 | 2.9, 2.9, 2.9, 2.9 | 260; 260; 260; 260 |") == 2
    unit = np.mean(SCORES["dqn"])
    assert f"| dqn | 4 | {3 / unit:.2f} | " in text
    assert f"| rainbow | 4 | {7 / unit:.2f} | " in text


def test_the_same_results_make_the_same_files(results):
    files = [results / "tiny" / name for name in ("report.md", "curves.png", "curves.svg", "scores.png", "scores.svg")]
    report(results)
    first = [path.read_bytes() for path in files]
    again = f"import test_learning_benchmarks as tests; tests.report(tests.Path({str(results)!r}))"
    # In another process, where sets have another order
    subprocess.run([sys.executable, "-c", again], cwd=Path(__file__).parent, check=True)
    assert [path.read_bytes() for path in files] == first


RESULTS = ROOT / "benchmarks/learning/results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/report.md")), ids=lambda path: path.parent.name)
def test_the_reports_have_the_scores_that_lie_beside_them(path):
    text = path.read_text()
    suite, *options = shlex.split(re.search(r"`python benchmarks/learning/report.py (.*)`", text)[1])
    other_suites = [*options, ""][1:2] if "--also" in options else []
    elsewhere = dict(zip(options[1::3], options[2::3], strict=True)) if "--elsewhere" in options else {}
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n\n")[1].splitlines()]
    assert rows
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        means = []
        for seed in range(10):
            name = f"{cells['algorithm']}-{cells['environment'].replace('/', '-')}-{seed}"
            places = [elsewhere.get(name, f"{suite}/{name}"), *(f"{other}/{name}" for other in other_suites)]
            if found := [file for place in places if (file := RESULTS / place / "scores.csv").exists()]:
                means.append(np.loadtxt(found[-1], skiprows=1, ndmin=1).mean())
        assert cells["mean score of each seed"] == ", ".join(f"{mean:.1f}" for mean in means)
        assert int(cells["seeds"]) == len(means)


def test_a_reference_that_scores_nothing_is_refused(results):
    for seed in range(4):
        shutil.rmtree(results / f"tiny/dqn-A-v0-{seed}")
        write_run(results / f"tiny/dqn-A-v0-{seed}", 0.0)
    with pytest.raises(SystemExit, match=r"reference=dqn: its mean score must be positive, and is 0.0 in A-v0"):
        report(results)


def test_runs_that_have_not_ended_are_left_out(results):
    for seed in (1, 2, 3):
        (results / f"tiny/rainbow-B-v0-{seed}/manifest.json").unlink()
    text = report(results)
    assert "13 of 16 runs" in text
    assert "| B-v0 | rainbow | 1 | 4.00 |  | 4.0 (3.00 to 5.00) | 4.0 |" in text, "of one seed, over its two games"
    assert "| rainbow | 1 | " in text, "over all games only the seed that all games have"
    for seed in SUITE["seeds"]:
        (results / f"tiny/rainbow-A-v0-{seed}/manifest.json").unlink()
    report(results)
    assert "<!-- rainbow -->" in (results / "tiny/curves.svg").read_text(), "the first game lacks it, the legend does not"


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    zoo = [sys.executable, "-m", "sb3_rainbow.zoo", "train", "--algo", "rainbow", "--env", "CartPole-v1", "-n", "60"]
    options = ["-f", logs, "--eval-freq", "-1", "--seed", "0", "-params", "buffer_size:100"]
    subprocess.run([*zoo, *options], check=True, capture_output=True)
    return logs / "rainbow/CartPole-v1_1"


def test_the_film_is_of_the_median_game(tmp_path, untrained):
    options = ["--games", "5", "--epsilon", "0.5", "--csv", tmp_path / "scores.csv", "--gif", tmp_path / "film.gif"]
    command = [sys.executable, ROOT / "benchmarks/learning/evaluate.py", untrained, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = np.loadtxt(tmp_path / "scores.csv", skiprows=1).tolist()
    assert len(scores) == 5
    assert len(set(scores)) > 1
    median = sorted(scores)[2]
    game = int(re.search(r"film.gif: game (\d)", done.stdout)[1])
    assert scores[game] == median
    # CartPole's score is its length, every second step is filmed, and a GIF shows equal pictures as one
    assert median // 4 < len(imageio.imread(tmp_path / "film.gif")) <= median // 2


def test_a_run_is_played_in_the_environment_that_it_was_trained_in(tmp_path):
    zoo = [sys.executable, "-m", "sb3_rainbow.zoo", "train", "--algo", "rainbow", "--env", "CartPole-v1", "-n", "20"]
    options = ["-f", tmp_path, "--eval-freq", "-1", "--env-kwargs", "sutton_barto_reward:True", "-params", "buffer_size:100"]
    subprocess.run([*zoo, *options], check=True, capture_output=True)
    _, env = load_run(tmp_path / "rainbow/CartPole-v1_1")
    assert env.get_attr("_sutton_barto_reward") == [True]


def test_epsilon_is_the_share_of_random_actions():
    model = SimpleNamespace(
        predict=lambda obs, *_: (np.zeros(len(obs), int), None), action_space=spaces.Discrete(4), exploration_rate=1.0
    )
    player = EpsilonGreedy(model, 0.2, seed=0)
    others = np.mean([player.predict(np.zeros((50, 1)))[0] != 0 for _ in range(400)])
    assert abs(others - 0.15) < 0.01
    assert model.exploration_rate == 0


def write_zoo_run(folder: Path, model: RainbowDQN, env: str, **config) -> None:
    """As RL Zoo leaves it."""
    model.save(folder / f"{env}.zip")
    (folder / env).mkdir()
    arguments = {"env": env, "algo": "rainbow", "gym_packages": [], "env_kwargs": None}
    (folder / env / "args.yml").write_text(yaml.safe_dump(arguments))
    (folder / env / "config.yml").write_text(yaml.dump(OrderedDict(config)))


def test_a_run_whose_replay_wants_its_environment_is_played_without(tmp_path):
    gym.register("BitFlipping-v0", BitFlippingEnv, kwargs={"n_bits": 3})
    try:
        env = gym.make("BitFlipping-v0")
        model = RainbowDQN("MultiInputPolicy", env, buffer_size=50, replay_buffer_class=HerReplayBuffer)
        write_zoo_run(tmp_path, model, "BitFlipping-v0", policy="MultiInputPolicy")
        assert len(evaluate(*load_run(tmp_path), n_games=2)) == 2
    finally:
        gym.registry.pop("BitFlipping-v0")


@pytest.fixture(scope="module")
def untrained_atari(tmp_path_factory):
    run = tmp_path_factory.mktemp("atari")
    env = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4"), 4)
    model = RainbowDQN("DataEfficientCnnPolicy", env, buffer_size=10)
    wrappers = {"env_wrapper": [f"{AtariWrapper.__module__}.{AtariWrapper.__name__}"], "frame_stack": 4}
    wrappers["vec_env_wrapper"] = "sb3_rainbow.envs.AtariVecEnv"
    write_zoo_run(run, model, "BreakoutNoFrameskip-v4", policy="DataEfficientCnnPolicy", **wrappers)
    return run


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {"n_games": 20}),
        (["--protocol", "notebook"], {"n_games": 50, "epsilon": 0.05, "deterministic": True}),
        (["--protocol", "usual", "--games", "3", "--noise"], {"n_games": 3, "epsilon": 0.001, "deterministic": False}),
        (["--sb3-wrappers", "--sticky", "0.25", "--seed", "4", "--epsilon", "0"], {"n_games": 20, "epsilon": 0.0}),
    ],
    ids=str,
)
def test_the_options_of_an_evaluation_reach_the_games(untrained_atari, options, settings):
    main = runpy.run_path(str(ROOT / "benchmarks/learning/evaluate.py"))["main"]
    played = []
    main.__globals__["evaluate"] = lambda model, env, **given: played.append((env, given)) or [1.0]
    with patch.object(sys, "argv", ["evaluate.py", str(untrained_atari), *options]):
        main()
    ((env, given),) = played
    assert given == settings | {"seed": 4 if "--seed" in options else 0}
    in_own_threads = isinstance(env.unwrapped, AtariVecEnv)
    assert in_own_threads == ("--sb3-wrappers" not in options)
    if not in_own_threads:
        (ale,) = env.get_attr("ale")
        assert ale.getFloat("repeat_action_probability") == 0.25
    env.close()


def test_a_run_of_rl_zoo_is_drawn_and_filmed(untrained):
    command = [sys.executable, ROOT / "examples/show_run.py", untrained.parent, "--env", "CartPole-v1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pictures = [path for ending in ("png", "gif") for path in untrained.rglob(f"*.{ending}")]
    assert len(pictures) == 2
    assert all(str(path) in done.stdout and imageio.imread(path).std() > 0 for path in pictures)


def test_values_are_set_against_the_returns_that_followed(untrained):
    command = [sys.executable, ROOT / "benchmarks/learning/diagnose.py", untrained, "--steps", "180"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = {name: float(number) for name, number in re.findall(r"\| (.+) \| (\S+) \|", done.stdout)}
    counted = numbers["steps that count"]
    assert 0 < counted < 180, "the last game is not played to its end"
    assert 1 < numbers["return that followed, mean"] < numbers["return that followed, 99th percentile"] < 100
    assert 0 < numbers["noise: share of other actions"] < 1
    lost = [numbers[f"{way}: Q-value lost per step"] for way in ("bf16", "noise", "random actions")]
    assert 0 <= lost[0] < lost[1] < 2 * lost[2]
    sigmas = [number for name, number in numbers.items() if name.endswith("mean |sigma| over its first value")]
    assert sigmas == [1.0] * 6, "two streams of three layers, of which none was trained"


def test_a_return_is_discounted_to_the_end_of_its_episode_and_not_known_without_it():
    discounted = runpy.run_path(str(ROOT / "benchmarks/learning/diagnose.py"))["discounted"]
    rewards = np.array([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0], [8.0, 1.0]])
    dones = np.array([[False, False], [False, False], [True, False], [False, True]])
    expected = [[1 + 0.5 * (2 + 0.5 * 4), 1.875], [4.0, 1.75], [4.0, 1.5], [np.nan, 1.0]]
    np.testing.assert_array_equal(discounted(rewards, dones, 0.5), expected)


def test_the_interval_of_a_mean_is_of_seeds_and_games():
    interval_of_mean = runpy.run_path(str(ROOT / "benchmarks/learning/report.py"))["interval_of_mean"]
    games = np.random.default_rng(0).normal(size=400)
    half = 1.96 * games.std() / 400**0.5
    assert interval_of_mean([games]) == pytest.approx((games.mean() - half, games.mean() + half), abs=0.02)
    # Of two seeds that are drawn twice, one in four draws has only the first
    assert interval_of_mean([np.zeros(50), np.full(50, 10.0)]) == (0, 10)
    assert interval_of_mean([np.zeros(50), np.zeros(50)]) == (0, 0)


def test_a_run_of_another_suite_stands_for_one_of_this(results):
    before = report(results)
    assert "| 26.8 (" in before
    (results / "other").mkdir()
    (results / "tiny/dqn-A-v0-1").rename(results / "other/same")
    assert "# tiny: 15 of 16 runs" in report(results)
    after = report(results, "--elsewhere", "dqn-A-v0-1", "other/same")
    assert after.split("This page")[0] == before.split("This page")[0]
    with pytest.raises(SystemExit, match="--elsewhere: 'dqn-A-v0-9' is no run of tiny"):
        report(results, "--elsewhere", "dqn-A-v0-9", "other/same")
    (results / "other/same").rename(results / "other/dqn-A-v0-1")
    assert report(results, "--also", "other").split("This page")[0] == before.split("This page")[0]


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_faster_peers_learn_what_the_peers_learn(algorithm):
    faster = runpy.run_path(str(ROOT / "benchmarks/learning/callbacks.py"))["FasterPeer"]
    models = []
    for callback in (None, faster()):
        env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=4)
        env.observation_space.seed(0)
        model = algorithm("CnnPolicy", env, buffer_size=100, learning_starts=8, batch_size=8, seed=0)
        start = deepcopy(model.policy.state_dict())
        models.append(model.learn(40, callback=callback))
    plain, fast = (model.policy.state_dict() for model in models)
    for name in plain:
        assert not th.equal(plain[name], start[name]) or "target" in name
        th.testing.assert_close(fast[name], plain[name])
        assert fast[name].dim() != 4 or fast[name].is_contiguous(memory_format=th.channels_last)
    assert all(group["fused"] for group in models[1].policy.optimizer.param_groups)

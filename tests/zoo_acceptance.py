"""
RL Zoo's command lines after nothing but an install, in a virtual environment of its own.

``test_zoo_wheel.py`` and ``test_zoo_editable.py`` run these tests for the two kinds of install, side by side; the
latter leaves out what that cannot change.
"""

import contextlib
import os
import re
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

ROOT = Path(__file__).parents[1]
ATARI = "BreakoutNoFrameskip-v4"


class Result(NamedTuple):
    code: int
    output: str
    peak_bytes: int


class Install:
    """A virtual environment with this project in it. Everything else comes from the environment that runs the tests."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv/bin/python"
        (self.site_packages,) = (folder / "venv/lib").glob("python3.*/site-packages")
        # A plain path line: the start-up lines that lie there are not executed
        (self.site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        if kind == "wheel":
            build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
            subprocess.run(build, check=True, capture_output=True)
            (wheel,) = folder.glob("*.whl")
            self.pip("install", str(wheel))
        else:
            self.pip("install", "--editable", str(ROOT), "--no-build-isolation")

    def pip(self, command: str, *arguments: str) -> None:
        options = ["--no-deps", "--force-reinstall"] if command == "install" else ["--yes"]
        call = [sys.executable, "-m", "pip", "--python", self.python, command, "-q", *options, *arguments]
        done = subprocess.run(call, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *arguments: object, **environment: str) -> Result:
        """Run python in this environment, in an empty folder, and measure its memory."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "SB3_RAINBOW", "VIRTUAL_ENV"))}
        variables |= {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"} | environment
        working = self.folder / "empty"
        working.mkdir(exist_ok=True)
        command = [str(self.python), *map(str, arguments)]
        with open(self.folder / "output.txt", "w+") as file:
            process = subprocess.Popen(command, cwd=working, env=variables, stdout=file, stderr=subprocess.STDOUT)
            # Not what wait4 says: that begins with the memory of the process that starts it, of all tests so far
            peak = 0
            while process.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    peak = max(peak, psutil.Process(process.pid).memory_info().rss)
                time.sleep(0.02)
            file.seek(0)
            return Result(process.returncode, file.read(), peak)

    def zoo(self, module: str, *arguments: object, **environment: str) -> Result:
        return self.run("-m", f"rl_zoo3.{module}", *arguments, **environment)


@pytest.fixture(scope="module")
def install(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Install:
    return Install(request.module.KIND, tmp_path_factory.mktemp(request.module.KIND))


@pytest.fixture(scope="module")
def logs(install: Install) -> Path:
    """Folder with trained models: CartPole, and Breakout with a replay buffer that would take 1.4 GB."""
    folder = install.folder / "logs"
    cartpole = install.zoo("train", "--algo", "rainbow", "--env", "CartPole-v1", "-n", 500, "--eval-freq", -1, "-f", folder)
    assert cartpole.code == 0, cartpole.output
    yaml = ROOT / "hyperparams/rainbow.yml"
    if install.kind == "wheel":
        yaml = install.site_packages / "sb3_rainbow/hyperparams/rainbow.yml"
    assert f"Loading hyperparameters from: {yaml}" in cartpole.output
    assert (folder / "rainbow/CartPole-v1_1/CartPole-v1.zip").is_file()

    params = ["-params", "buffer_size:200000", "learning_starts:50"]
    atari = install.zoo("train", "--algo", "rainbow", "--env", ATARI, "-n", 300, "--eval-freq", -1, "-f", folder, *params)
    assert atari.code == 0, atari.output
    assert "Stacking 4 frames" in atari.output
    assert "Wrapping the env in a VecTransposeImage" in atari.output
    assert (folder / f"rainbow/{ATARI}_1/{ATARI}.zip").is_file()
    return folder


def test_starting_python_imports_no_torch(install):
    result = install.run("-c", "import sys; print('_sb3_rainbow_startup' in sys.modules, 'torch' in sys.modules)")
    assert result.output == "True False\n"


def test_the_startup_line_of_later_pythons_is_installed_too(install):
    assert (install.site_packages / "sb3_rainbow_zoo.start").read_text() == (ROOT / "sb3_rainbow_zoo.start").read_text()


def test_training_saves(logs):
    assert (logs / f"rainbow/{ATARI}_1/{ATARI}/config.yml").is_file()


def test_training_in_subprocesses_saves(install):
    folder = install.folder / "subproc"
    params = ["-params", "buffer_size:1000", "learning_starts:50", "n_envs:2", "--vec-env", "subproc"]
    result = install.zoo("train", "--algo", "rainbow", "--env", ATARI, "-n", 100, "--eval-freq", -1, "-f", folder, *params)
    assert result.code == 0, result.output
    assert "Using 2 environments" in result.output
    assert (folder / f"rainbow/{ATARI}_1/{ATARI}.zip").is_file()


def test_one_argument_trains_on_ales_own_threads(install):
    folder = install.folder / "native"
    params = [
        "-params",
        "buffer_size:1000",
        "learning_starts:50",
        "n_envs:2",
        "vec_env_wrapper:'sb3_rainbow.envs.AtariVecEnv'",
    ]
    result = install.zoo("train", "--algo", "rainbow", "--env", ATARI, "-n", 100, "--eval-freq", 50, "-f", folder, *params)
    assert result.code == 0, result.output
    assert "Stacking 4 frames" in result.output
    assert (folder / f"rainbow/{ATARI}_1/best_model.zip").is_file()
    assert "AtariVecEnv" in (folder / f"rainbow/{ATARI}_1/{ATARI}/config.yml").read_text()


def test_the_papers_settings_run_by_name(install):
    folder = install.folder / "preset"
    params = ["-n", 60, "--eval-freq", -1, "-f", folder, "-params", "buffer_size:1000", "learning_starts:50"]
    result = install.zoo("train", "--algo", "rainbow", "--env", ATARI, "-conf", "data_efficient", *params)
    assert result.code == 0, result.output
    config = (folder / f"rainbow/{ATARI}_1/{ATARI}/config.yml").read_text()
    assert "DataEfficientCnnPolicy" in config
    other = install.zoo("train", "--algo", "rainbow", "--env", "ALE/Pong-v5", "-conf", "dopamine", *params)
    assert other.code == 0, other.output
    for env in (ATARI, "ALE/Pong-v5"):
        played = install.zoo("enjoy", "--algo", "rainbow", "--env", env, "-f", folder, "--no-render", "-n", 20)
        assert played.code == 0, played.output


@pytest.mark.parametrize(
    ("name", "env", "own"), [("low_budget", ATARI, "FewerSteps"), ("notebook", "ALE/Breakout-v5", "AtariPreprocessing")]
)
def test_other_settings_run_by_name(install, name, env, own):
    folder = install.folder / name
    params = ["-n", 60, "--eval-freq", -1, "-f", folder, "-params", "buffer_size:1000", "learning_starts:50"]
    result = install.zoo("train", "--algo", "rainbow", "--env", env, "-conf", name, *params)
    assert result.code == 0, result.output
    (config,) = folder.glob("rainbow/*/*/config.yml")
    assert own in config.read_text()


def test_training_can_be_continued_with_its_replay_buffer(install):
    folder = install.folder / "continued"
    common = ["--algo", "rainbow", "--env", "CartPole-v1", "-n", 300, "--eval-freq", 200, "-f", folder, "--save-replay-buffer"]
    params = ["-params", "learning_starts:50", "buffer_size:500"]
    first = install.zoo("train", *common, *params)
    assert first.code == 0, first.output
    model = folder / "rainbow/CartPole-v1_1/CartPole-v1.zip"
    second = install.zoo("train", *common, "-i", model, *params)
    assert second.code == 0, second.output
    assert "Loading replay buffer" in second.output
    assert (folder / "rainbow/CartPole-v1_2/best_model.zip").is_file()


def test_a_trained_agent_plays(install, logs):
    result = install.zoo("enjoy", "--algo", "rainbow", "--env", "CartPole-v1", "-f", logs, "--no-render", "-n", 1000)
    assert result.code == 0, result.output
    assert "Mean reward:" in result.output


def test_playing_needs_no_replay_memory(install, logs):
    result = install.zoo("enjoy", "--algo", "rainbow", "--env", ATARI, "-f", logs, "--no-render", "-n", 50)
    assert result.code == 0, result.output
    assert result.peak_bytes < 1e9


def test_the_console_script_trains_and_plays(install):
    folder = install.folder / "console"
    script = ["-c", "from rl_zoo3.cli import main; main()"]
    train = install.run(
        *script, "train", "--algo", "rainbow", "--env", "CartPole-v1", "-n", 300, "--eval-freq", -1, "-f", folder
    )
    assert train.code == 0, train.output
    enjoy = install.run(*script, "enjoy", "--algo", "rainbow", "--env", "CartPole-v1", "-f", folder, "--no-render", "-n", 1000)
    assert enjoy.code == 0, enjoy.output
    assert "Mean reward:" in enjoy.output


def test_hyperparameters_are_optimised(install):
    folder = install.folder / "optimised"
    options = ["--n-trials", 2, "-n", 300, "--sampler", "random", "--pruner", "none", "--no-optim-plots", "--seed", 1]
    result = install.zoo("train", "--algo", "rainbow", "--env", "CartPole-v1", "-optimize", *options, "-f", folder)
    assert result.code == 0, result.output
    assert "Number of finished trials:  2" in result.output
    (report,) = (folder / "rainbow").glob("report_CartPole-v1_*.csv")
    assert report.read_text().count("COMPLETE") == 2, report.read_text()


def test_a_video_is_recorded(install, logs):
    result = install.zoo("record_video", "--algo", "rainbow", "--env", ATARI, "-f", logs, "-n", 20)
    assert result.code == 0, result.output
    (video,) = (logs / f"rainbow/{ATARI}_1/videos").glob("*.mp4")
    assert video.stat().st_size > 1000


@pytest.mark.parametrize("module", ["train", "enjoy", "record_video", "record_training", "load_from_hub"])
def test_rainbow_is_among_the_choices(install, module):
    result = install.zoo(module, "--help")
    assert result.code == 0, result.output
    assert re.search(r"[{,]rainbow[,}]", result.output)
    assert "could not register" not in result.output


def test_a_config_that_does_not_exist_is_still_an_error(install):
    result = install.zoo("train", "--algo", "rainbow", "--env", "CartPole-v1", "-conf", "/nope/rainbow.yml", "-n", 10)
    assert result.code != 0
    assert "FileNotFoundError" in result.output


def test_other_algorithms_keep_their_own_config(install):
    folder = install.folder / "dqn"
    result = install.zoo("train", "--algo", "dqn", "--env", "CartPole-v1", "-n", 300, "--eval-freq", -1, "-f", folder)
    assert result.code == 0, result.output
    assert "rl_zoo3/hyperparams/dqn.yml" in result.output


def test_the_hook_can_be_switched_off_and_our_own_entry_works_without_it(install):
    result = install.zoo("train", "--help", SB3_RAINBOW_NO_ZOO="1")
    assert result.code == 0, result.output
    assert "rainbow" not in result.output
    result = install.run("-m", "sb3_rainbow.zoo", "train", "--help", SB3_RAINBOW_NO_ZOO="1")
    assert result.code == 0, result.output
    assert re.search(r"[{,]rainbow[,}]", result.output)


def test_a_failing_hook_is_one_warning_with_a_way_out_and_harms_nobody(install):
    folder = install.folder / "failing"
    folder.mkdir()
    (folder / "sb3_rainbow.py").write_text("raise ImportError('broken on purpose')\n")
    command = ["-W", "always", "-m", "rl_zoo3.train", "--algo", "dqn", "--env", "CartPole-v1", "-n", 300, "--eval-freq", -1]
    result = install.run(*command, "-f", folder, PYTHONPATH=str(folder))
    assert result.code == 0, result.output
    assert result.output.count("could not register with RL Zoo (ImportError('broken on purpose'))") == 1
    assert "python -m sb3_rainbow.zoo train" in result.output


def test_without_the_startup_line_our_own_entry_trains(install):
    line = install.site_packages / "sb3_rainbow_zoo.pth"
    kept = line.read_text()
    line.unlink()
    try:
        result = install.zoo("train", "--algo", "rainbow", "--env", "CartPole-v1", "-n", 10)
        assert result.code != 0
        assert "invalid choice: 'rainbow'" in result.output
        late = "import rl_zoo3.exp_manager, rl_zoo3.utils as u; assert 'rainbow' not in u.ALGOS; "
        result = install.run("-c", late + "import sb3_rainbow; assert u.ALGOS['rainbow'] is sb3_rainbow.RainbowDQN")
        assert result.code == 0, result.output
        folder = install.folder / "own"
        arguments = ["train", "--algo", "rainbow", "--env", "CartPole-v1", "-n", 300, "--eval-freq", -1, "-f", folder]
        result = install.run("-m", "sb3_rainbow.zoo", *arguments)
        assert result.code == 0, result.output
        assert (folder / "rainbow/CartPole-v1_1/CartPole-v1.zip").is_file()
    finally:
        line.write_text(kept)


def test_uninstalling_leaves_nothing(install):
    """The last test: it takes the project out of the environment."""
    install.pip("uninstall", "sb3-rainbow")
    result = install.zoo("train", "--algo", "rainbow", "--env", "CartPole-v1", "-n", 10)
    assert result.code != 0
    assert "invalid choice: 'rainbow'" in result.output
    assert [path.name for path in install.site_packages.iterdir() if "sb3_rainbow" in path.name] == []

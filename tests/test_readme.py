"""What the README shows is run, with fewer steps; what the other pages show is read."""

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sb3_rainbow.envs import RayVecEnv
from sb3_rainbow.sweep.suite import check_known, expand, read

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/learning/results/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.S)


def run(*command: str, folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_examples_run_one_after_the_other(tmp_path):
    code = "\n".join(blocks("python"))
    assert code.count("RainbowDQN(") == 4
    assert code.count(".learn(") == 5
    shortened = re.sub(r"learn\([\d_]+\)", "learn(300)", code).replace("100_000", "1_000").replace("400_000", "300")
    shortened = re.sub(r"\b([14])_000\b(?!,\n    learning)", r"\g<1>00", shortened)
    run(sys.executable, "-c", shortened, folder=tmp_path)
    assert (tmp_path / "rainbow_cartpole.zip").is_file()
    assert [int(path.name.split("_")[1]) for path in sorted((tmp_path / "checkpoints").iterdir())] == [300, 400]


def test_the_rl_zoo_examples_run_one_after_the_other(tmp_path):
    lines, _ = [block.splitlines() for block in blocks("sh") if "rl_zoo3" in block]
    assert len(lines) == 2
    for line in lines:
        command = line.replace("--eval-freq 10000", "--eval-freq 500")
        output = run(*command.replace("python", sys.executable, 1).split(), "-n", "1000", folder=tmp_path)
    assert "Mean reward:" in output


def test_the_callback_goes_on_in_rl_zoo_where_it_was(tmp_path):
    (block,) = blocks("yaml")
    config = yaml.safe_load(block)
    config["CartPole-v1"] |= {"n_timesteps": 1000, "learning_starts": 50}
    (tmp_path / "my.yml").write_text(yaml.safe_dump(config))
    _, (line,) = [block.splitlines() for block in blocks("sh") if "rl_zoo3" in block]
    command = [*line.replace("python", sys.executable, 1).split(), "--eval-freq", "-1"]
    for number, (total, own) in enumerate([(300, 300), (500, 200)], start=1):
        output = run(*command, "-n", str(total), folder=tmp_path)
        assert ("Going on from" in output) == (number == 2)
        assert len(list((tmp_path / "checkpoints/CartPole-v1_0").glob(f"step_*{total}_*"))) == 1
        (monitor,) = (tmp_path / f"logs/rainbow/CartPole-v1_{number}").glob("*.monitor.csv")
        steps = sum(int(line.split(",")[1]) for line in monitor.read_text().splitlines()[2:])
        assert own - 100 < steps <= own + 50


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    for name, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


def test_suites_as_in_the_page_on_scale_are_taken(tmp_path):
    suite, algorithm, search = blocks("yaml", (ROOT / "docs/scale.md").read_text())
    more = suite.replace("seeds:", f"{algorithm}seeds:")
    for text, n_runs in ((suite, 12), (more, 18), (search, 4)):
        (tmp_path / "suite.yml").write_text(text)
        name, settings = read(tmp_path / "suite.yml")
        check_known(name, settings)
        assert len(expand(name, settings, tmp_path)) == n_runs


def test_environments_as_in_the_other_pages_are_made():
    (ray,) = blocks("python", (ROOT / "docs/scale.md").read_text())
    (arguments,) = re.findall(r"^vec_env_kwargs = (.*)$", ray, re.M)
    inspect.signature(RayVecEnv).bind([], **yaml.safe_load(arguments))
    (atari,) = blocks("python", (ROOT / "docs/speed.md").read_text())
    names: dict = {}
    exec(atari, names)
    assert names["env"].reset().shape == (8, 4, 84, 84)
    names["env"].close()


@pytest.mark.parametrize("module", ["rl_zoo3.train", "rl_zoo3.enjoy", "sb3_rainbow.sweep"])
def test_every_option_that_a_command_has_is_one(module, tmp_path):
    known = re.findall(r"(?<![\w-])--?\w[\w-]*", run(sys.executable, "-m", module, "--help", folder=tmp_path))
    commands = [
        line
        for page in PAGES
        for block in blocks("sh", page.read_text())
        for line in block.replace("\\\n", " ").splitlines()
        if module in line
    ]
    assert commands
    for command in commands:
        words = shlex.split(command)
        for option in words[words.index(module) :]:
            assert not option.startswith("-") or option in known, command


def test_every_script_that_a_page_names_is_there():
    named = {name for page in PAGES for name in re.findall(r"\b(?:benchmarks|examples|tests)/[\w/]+\.py\b", page.read_text())}
    assert len(named) > 5
    for name in named:
        assert (ROOT / name).is_file(), name


def test_the_first_command_trains_with_our_settings_for_short_budgets():
    def commands(*variables: str) -> str:
        without = [f"--unset={name}" for name in ("MAKEFLAGS", "ENV", "STEPS", "CONF", "LOGS")]
        return run("env", *without, "make", "-n", "train", *variables, folder=ROOT)

    assert "--env BreakoutNoFrameskip-v4 -n 7 " in commands("STEPS=7")
    assert " -conf low_budget\n" in commands()
    assert "show_run.py logs/rainbow --env BreakoutNoFrameskip-v4" in commands()
    assert "-conf" not in commands("ENV=CartPole-v1")


def test_every_preset_and_target_it_names_is_there():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"make ([\w-]+)", README):
        assert target in targets, target
    for name in re.findall(r"-conf (\w+)\b(?!\.yml)", README):
        assert (ROOT / f"hyperparams/{name}.yml").is_file(), name

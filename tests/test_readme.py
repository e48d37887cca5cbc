"""What the README shows is run, with fewer steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def run(*command: str, folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_python_examples_run_one_after_the_other(tmp_path):
    code = "\n".join(blocks("python"))
    assert code.count("RainbowDQN(") == 3
    assert code.count(".learn(") == 4
    shortened = re.sub(r"learn\([\d_]+\)", "learn(300)", code).replace("100_000", "1_000")
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
        run(*command, "-n", str(total), folder=tmp_path)
        assert len(list((tmp_path / "checkpoints/CartPole-v1_0").glob(f"step_*{total}_*"))) == 1
        (monitor,) = (tmp_path / f"logs/rainbow/CartPole-v1_{number}").glob("*.monitor.csv")
        steps = sum(int(line.split(",")[1]) for line in monitor.read_text().splitlines()[2:])
        assert own - 100 < steps <= own + 50


def test_every_file_and_target_it_names_is_there():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / name).exists(), name
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"make ([\w-]+)", README):
        assert target in targets, target
    for name in re.findall(r"-conf (\w+)\b(?!\.yml)", README):
        assert (ROOT / f"hyperparams/{name}.yml").is_file(), name

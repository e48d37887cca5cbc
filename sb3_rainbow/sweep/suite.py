"""What a suite says: environments x algorithms x overrides x seeds, each of them a run."""

import importlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sb3_rainbow import zoo
from sb3_rainbow.arguments import check_choice, check_integer, check_number
from sb3_rainbow.presets import PRESETS

#: Keys of every suite, with the values that they have if not said; None where they must be
COMMON: dict[str, Any] = {
    "kind": "train",
    "envs": None,
    "algorithms": None,
    "gym_packages": [],
    "num_cpus": 1,
    "num_gpus": 0,
    "max_retries": 10,
}
KEYS: dict[str, dict[str, Any]] = {
    "train": COMMON
    | {
        "seeds": None,
        "overrides": {"": {}},
        "evaluation": {"n_games": 20, "deterministic": True},
        "checkpoint_freq": 10_000,
        "reference": "",
        "milestone": math.inf,
    },
    "optimize": COMMON | {"trials": None, "workers": 1, "seed": 0, "storage": "", "search": {}},
}
ALGORITHM = ("algo", "config", "hyperparams")
EVALUATION = ("n_games", "epsilon", "deterministic", "seed")
#: RL Zoo's arguments of the same names
SEARCH = ("sampler", "pruner", "n_startup_trials", "n_evaluations", "eval_episodes", "n_eval_envs")
SEARCH_CHOICES = {"sampler": ("random", "tpe", "auto"), "pruner": ("halving", "median", "none")}


class Run(NamedTuple):
    """One training, or one worker of a search."""

    folder: Path
    env: str
    #: Agent steps; of each trial, in a search
    steps: int
    label: str
    #: ``algo`` and perhaps ``config`` and ``hyperparams``
    settings: dict[str, Any]
    seed: int
    #: Arguments of ``evaluate``
    evaluation: dict[str, Any]
    #: Modules that register environments
    gym_packages: list[str]
    #: Agent steps between checkpoints of Rainbow; 0 for none
    checkpoint_freq: int
    #: Share of a machine
    num_cpus: float
    num_gpus: float
    #: How often it is started again if its process or its machine dies
    max_retries: int
    #: Where modules beside the suite are found
    python_path: str
    #: ``storage``, ``study_name``, ``trials`` of a search, and RL Zoo's arguments for it; empty for a training
    search: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return (self.folder / "manifest.json").exists()

    def to_json(self) -> str:
        """
        :return: what ``from_json`` reads
        """
        return json.dumps(self._asdict() | {"folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> "Run":
        """
        :param text: what ``to_json`` wrote
        :return: the run
        """
        fields = json.loads(text)
        return cls(**fields | {"folder": Path(fields["folder"])})


def read(path: Path, name: str | None = None) -> tuple[str, dict[str, Any]]:
    """
    :param path: YAML file: suites by their names, or one suite
    :param name: which of several; not needed if there is one
    :return: its name, and the suite with all its keys
    :raises ValueError: if it is not what a suite may be; the text names the key and the value
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({error})") from error
    _check_mapping(str(path), content)
    if content.keys() & {"kind", "envs", "algorithms"}:
        content = {path.stem: content}
    if name is None:
        if len(content) > 1:
            raise ValueError(f"{path} holds several suites: say which by --suite, one of {', '.join(map(str, content))}")
        (name,) = content
    check_choice("suite", name, list(content))
    return name, _checked(name, content[name], path.parent)


def _checked(name: str, suite: Any, folder: Path) -> dict[str, Any]:
    """The suite with all its keys, if it is right."""
    _check_mapping(name, suite)
    kind = suite.get("kind", "train")
    check_choice(f"{name}: kind", kind, KEYS)
    defaults = KEYS[kind]
    _check_keys(name, suite, tuple(defaults))
    suite = defaults | suite
    for key, value in suite.items():
        if value is None:
            raise ValueError(
                f"{name}: {key}=None: must be {'given' if defaults[key] is None else 'left out, or have a value'}"
            )
    _check_mapping(f"{name}: envs", suite["envs"])
    for env, steps in suite["envs"].items():
        check_integer(f"{name}: envs: {env}", steps, 1)
    _check_mapping(f"{name}: algorithms", suite["algorithms"])
    suite["algorithms"] = {
        label: _algorithm(f"{name}: algorithms: {label}", str(label), settings, folder)
        for label, settings in suite["algorithms"].items()
    }
    packages = suite["gym_packages"]
    if not isinstance(packages, list) or not all(isinstance(package, str) for package in packages):
        raise ValueError(f"{name}: gym_packages={packages!r}: must be a list of modules")
    check_number(f"{name}: num_cpus", suite["num_cpus"], 0, 1024, low_open=True)
    check_number(f"{name}: num_gpus", suite["num_gpus"], 0, 1024)
    check_integer(f"{name}: max_retries", suite["max_retries"], 0)
    if kind == "optimize":
        for key, low in (("trials", 1), ("workers", 1), ("seed", 0)):
            check_integer(f"{name}: {key}", suite[key], low)
        if suite["workers"] > suite["trials"]:
            raise ValueError(f"{name}: workers={suite['workers']}: are more than trials={suite['trials']}")
        _check_search(f"{name}: search", suite["search"])
        if not isinstance(suite["storage"], str):
            raise ValueError(
                f"{name}: storage={suite['storage']!r}: must be a file that ends in .log, or a database's address"
            )
    else:
        _check_training(name, suite)
    return suite


def _check_search(key: str, search: Any) -> None:
    _check_keys(key, search, SEARCH)
    for name, value in search.items():
        if name in SEARCH_CHOICES:
            check_choice(f"{key}: {name}", value, SEARCH_CHOICES[name])
        else:
            check_integer(f"{key}: {name}", value, 0 if name == "n_startup_trials" else 1)


def _check_training(name: str, suite: dict[str, Any]) -> None:
    seeds = suite["seeds"]
    if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
        raise ValueError(f"{name}: seeds={seeds!r}: must be a list of different integers")
    for seed in seeds:
        check_integer(f"{name}: seeds", seed, 0)
    check_integer(f"{name}: checkpoint_freq", suite["checkpoint_freq"], 0)
    _check_mapping(f"{name}: overrides", suite["overrides"])
    for label, hyperparams in suite["overrides"].items():
        if label:
            _check_label(f"{name}: overrides", label)
        _check_hyperparams(f"{name}: overrides: {label}", hyperparams)
    evaluation = suite["evaluation"]
    _check_keys(f"{name}: evaluation", evaluation, EVALUATION)
    check_integer(f"{name}: evaluation: n_games", evaluation.get("n_games", 1), 1)
    check_number(f"{name}: evaluation: epsilon", evaluation.get("epsilon", 0), 0, 1)
    check_choice(f"{name}: evaluation: deterministic", evaluation.get("deterministic", True), (True, False))
    check_integer(f"{name}: evaluation: seed", evaluation.get("seed", 0), 0)
    if suite["reference"]:
        labels = [_label(label, override) for label in suite["algorithms"] for override in suite["overrides"]]
        check_choice(f"{name}: reference", suite["reference"], labels)
    check_number(f"{name}: milestone", suite["milestone"], -math.inf, math.inf)


def _label(algorithm: str, override: str) -> str:
    """Of a run; an override without a name is the algorithm as it is."""
    return f"{algorithm}-{override}" if override else algorithm


def _algorithm(key: str, label: str, settings: Any, folder: Path) -> dict[str, Any]:
    """Settings of an algorithm, its config found."""
    _check_label(key, label)
    _check_keys(key, settings, ALGORITHM)
    if not isinstance(settings.get("algo"), str):
        raise ValueError(f"{key}: algo={settings.get('algo')!r}: must be a name of RL Zoo's, such as rainbow")
    _check_hyperparams(f"{key}: hyperparams", settings.get("hyperparams", {}))
    config = settings.get("config")
    if config is None or (config in PRESETS and settings["algo"] == zoo.ALGO):
        return dict(settings)
    for base in (folder, Path()):  # beside the suite, or where the command is given
        if isinstance(config, str) and (base / config).is_file():
            return settings | {"config": str((base / config).resolve())}
    raise ValueError(f"{key}: config={config!r}: no such file, nor, for {zoo.ALGO}, one of {', '.join(PRESETS)}")


def _check_mapping(key: str, value: Any) -> None:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{key}={value!r}: must be a mapping that is not empty")


def _check_keys(key: str, value: Any, known: tuple[str, ...]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{key}={value!r}: must be a mapping")
    for name in value:
        if name not in known:
            raise ValueError(f"{key}: {name}={value[name]!r}: unknown key, the known ones are {', '.join(known)}")


def _check_label(key: str, label: Any) -> None:
    if not isinstance(label, str) or not re.fullmatch(r"[\w.+=-]+", label):  # it becomes part of a folder's name
        raise ValueError(f"{key}: label {label!r}: must be of letters, digits and . + = - _")


def _check_hyperparams(key: str, hyperparams: Any) -> None:
    if not isinstance(hyperparams, dict):
        raise ValueError(f"{key}={hyperparams!r}: must be a mapping")
    for name, value in hyperparams.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{key}: {name!r}={value!r}: must be a name of a hyperparameter")
        if isinstance(value, str) and re.fullmatch(r"[-+\d.]+e[-+\d]+", value, re.IGNORECASE):
            raise ValueError(f"{key}: {name}={value!r}: a text for YAML, which takes 1.0e-4 for a number but not 1e-4")


def expand(name: str, suite: dict[str, Any], out: Path, python_path: str = "") -> list[Run]:
    """
    :param name: name of the suite
    :param suite: as ``read`` returned it
    :param out: folder of all results
    :param python_path: where modules beside the suite are found
    :return: its runs, all environments and algorithms of one seed first
    :raises ValueError: if two would have the same folder
    """
    runs = (
        _searches(name, suite, out, python_path) if suite["kind"] == "optimize" else _trainings(name, suite, out, python_path)
    )
    seen: dict[Path, Run] = {}
    for run in runs:
        other = seen.setdefault(run.folder, run)
        if other is not run:
            raise ValueError(f"{name}: {other.label} in {other.env} and {run.label} in {run.env}: both are called {run.name}")
    return runs


def _trainings(name: str, suite: dict[str, Any], out: Path, python_path: str) -> list[Run]:
    return [
        Run(
            folder=out / name / f"{full}-{env.replace('/', '-')}-{seed}",
            env=env,
            steps=steps,
            label=full,
            settings=settings | {"hyperparams": settings.get("hyperparams", {}) | hyperparams} if hyperparams else settings,
            seed=seed,
            evaluation=suite["evaluation"],
            checkpoint_freq=suite["checkpoint_freq"],
            search={},
            python_path=python_path,
            **_common(suite),
        )
        for seed in suite["seeds"]
        for env, steps in suite["envs"].items()
        for label, settings in suite["algorithms"].items()
        for override, hyperparams in suite["overrides"].items()
        for full in [_label(label, override)]
    ]


def _common(suite: dict[str, Any]) -> dict[str, Any]:
    return {key: suite[key] for key in ("gym_packages", "num_cpus", "num_gpus", "max_retries")}


def _searches(name: str, suite: dict[str, Any], out: Path, python_path: str) -> list[Run]:
    """The workers of every study, one after the other."""
    runs = []
    for env, steps in suite["envs"].items():
        for label, settings in suite["algorithms"].items():
            study = f"{label}-{env.replace('/', '-')}"
            search = suite["search"] | {"trials": suite["trials"], "study_name": study}
            search["storage"] = suite["storage"] or str(out / name / f"{study}.log")
            for worker in range(suite["workers"]):
                runs.append(
                    Run(
                        folder=out / name / f"{study}-worker-{worker}",
                        env=env,
                        steps=steps,
                        label=label,
                        settings=settings,
                        # Each attempt of each worker samples by a seed of its own
                        seed=suite["seed"] + 1000 * worker,
                        evaluation={},
                        checkpoint_freq=0,
                        search=search,
                        python_path=python_path,
                        **_common(suite),
                    )
                )
    return runs


def check_known(name: str, suite: dict[str, Any], python_path: str = "") -> None:
    """
    Whether RL Zoo and Gymnasium know what the suite names.

    :param name: name of the suite
    :param suite: as ``read`` returned it
    :param python_path: where modules beside the suite are found
    :raises ValueError: if they do not
    :raises ImportError: if RL Zoo is not installed
    """
    try:
        import rl_zoo3.import_envs  # noqa: F401  (registers Atari)
    except ModuleNotFoundError as error:
        raise ImportError(f'a sweep trains through RL Zoo: pip install "sb3-rainbow[zoo]" ({error})') from error
    import gymnasium as gym
    from rl_zoo3 import utils

    zoo.PATCHES[utils.__name__](utils)  # at start-up it may be switched off
    if python_path and python_path not in sys.path:
        sys.path.append(python_path)
    for package in suite["gym_packages"]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"{name}: gym_packages: {package!r} cannot be imported ({error})") from error
    for env in suite["envs"]:
        try:
            gym.spec(env)
        except (gym.error.Error, ModuleNotFoundError) as error:
            raise ValueError(f"{name}: envs: {env!r} is not registered ({error})") from error
    for label, settings in suite["algorithms"].items():
        check_choice(f"{name}: algorithms: {label}: algo", settings["algo"], list(utils.ALGOS))

"""Settings by name build what the papers describe."""

import functools
from types import SimpleNamespace

import optuna
import pytest
import torch as th
import yaml
from stable_baselines3 import DQN
from stable_baselines3.common import vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.utils import FloatSchedule

from sb3_rainbow import RainbowDQN, preset, tuning, zoo
from sb3_rainbow.envs import SubprocVecEnv
from sb3_rainbow.policies import ADAM_EPS
from sb3_rainbow.presets import PRESETS, hyperparams_path

FRAMES = {"screen_height": 84, "screen_width": 84, "n_channels": 4, "channel_first": True}


def model_of(*name: str) -> RainbowDQN:
    # Little memory and no wait for the first update
    return RainbowDQN(env=FakeImageEnv(6, **FRAMES), **preset(*name) | {"buffer_size": 100, "learning_starts": 8}, seed=0)


@pytest.mark.parametrize("name", [*((name,) for name in PRESETS), ("low_budget", "PongNoFrameskip-v4")], ids=" ".join)
def test_a_preset_trains_and_its_values_reach_the_model(name):
    settings = preset(*name)
    model = model_of(*name).learn(16)
    assert model._n_updates > 0
    assert model.lr_schedule(1.0) == FloatSchedule(settings["learning_rate"])(1.0)
    if name == ("low_budget",):  # says only what differs from RainbowDQN's defaults, the others all
        defaults = {"n_steps": 3, "alpha": 0.5, "beta0": 0.4, "sigma0": 0.5, "noisy": "factorised"}
        settings = defaults | {"policy_kwargs": {"optimizer_kwargs": {"eps": ADAM_EPS}}} | settings
    for argument in ("batch_size", "target_update_interval", "n_steps", "alpha", "beta0", "sigma0", "noisy"):
        assert getattr(model, argument) == settings[argument], argument
    assert model.policy.optimizer.defaults["eps"] == settings["policy_kwargs"]["optimizer_kwargs"]["eps"]
    assert model.q_net.head.n_atoms == settings.get("n_atoms", 1)


@pytest.mark.parametrize(
    ("name", "convolutions", "streams"),
    [
        # Weights and biases; streams of 512 and 256 units with two numbers for each weight, value and 6 actions, 51 atoms
        ("hessel", 77_984, 2 * (2 * 512 * (3136 + 1) + 7 * 51 * (512 + 1))),
        ("data_efficient", 54_496, 2 * (2 * 256 * (576 + 1) + 7 * 51 * (256 + 1))),
    ],
)
def test_the_networks_have_the_papers_sizes(name, convolutions, streams):
    q_net = model_of(name).q_net
    assert sum(p.numel() for p in q_net.features_extractor.parameters()) == convolutions
    assert sum(p.numel() for p in q_net.parameters()) == convolutions + streams


#: Of each source, apart from our files; steps are agent steps
RAINBOW = {
    "learning_rate": 0.0000625,
    "buffer_size": 1_000_000,
    "learning_starts": 80_000 / 4,
    "batch_size": 32,
    "gamma": 0.99,
    "train_freq": 4,
    "target_update_interval": 32_000 / 4,
    "exploration_initial_eps": 0.0,
    "exploration_final_eps": 0.0,
    "policy_kwargs": {"optimizer_kwargs": {"eps": 1.5e-4}},
    "sigma0": 0.5,
    "alpha": 0.5,
    "beta0": 0.4,
    "n_steps": 3,
    "n_atoms": 51,
    "v_min": -10.0,
    "v_max": 10.0,
}
DOPAMINE = RAINBOW | {"exploration_initial_eps": 0.01, "exploration_final_eps": 0.01, "sigma0": 0.1, "beta0": 0.5}
DATA_EFFICIENT = RAINBOW | {
    "learning_rate": 1e-4,
    "buffer_size": 100_000,
    "learning_starts": 1600,
    "train_freq": 1,
    "target_update_interval": 2000,
    "sigma0": 0.1,
    "n_steps": 20,
}


@pytest.mark.parametrize(("name", "values"), [("hessel", RAINBOW), ("dopamine", DOPAMINE), ("data_efficient", DATA_EFFICIENT)])
def test_the_values_are_those_of_the_source(name, values):
    settings = preset(name)
    assert {argument: settings[argument] for argument in values} == values


def test_the_learning_rate_of_a_low_budget_falls_to_zero():
    learning_rate = preset("low_budget")["learning_rate"]
    assert [learning_rate(remaining) for remaining in (1.0, 0.5, 0.0)] == [2.5e-4, 1.25e-4, 0.0]


def test_a_game_may_have_settings_of_its_own():
    assert preset("low_budget", "PongNoFrameskip-v4")["n_steps"] == 20
    for name, env_id in (("low_budget", "BreakoutNoFrameskip-v4"), ("hessel", "PongNoFrameskip-v4")):
        own, of_all = (settings | {"learning_rate": None} for settings in (preset(name, env_id), preset(name)))
        assert own == of_all


@pytest.mark.parametrize(
    ("section", "base", "suite", "label"),
    [
        ("atari", "rainbow", "breakout", "low-budget"),
        ("PongNoFrameskip-v4", "data_efficient", "pong-settings", "random-actions"),
    ],
)
def test_a_low_budget_is_what_the_results_were_measured_with(section, base, suite, label):
    low_budget, base = (yaml.safe_load(hyperparams_path(name).read_text()) for name in ("low_budget", base))
    suites = yaml.safe_load((hyperparams_path("rainbow").parents[1] / "benchmarks/learning/suites.yml").read_text())
    measured = base["atari"] | suites[suite]["algorithms"][label]["hyperparams"]
    (measured["n_timesteps"],) = suites[suite]["envs"].values()
    measured.pop("env_kwargs", None)  # what is so in the games without frame skip
    # The same, faster: eight games, and four updates for each of their steps
    faster = {name: measured.pop(name) for name in ("n_envs", "vec_env_wrapper", "amp", "train_freq", "gradient_steps")}
    steps_per_update = faster["n_envs"] * faster["train_freq"] / faster["gradient_steps"]
    assert low_budget[section] == measured | {"train_freq": steps_per_update, "gradient_steps": 1}


def test_every_number_is_one_in_yaml_too():
    for path in hyperparams_path("rainbow").parent.glob("*.yml"):
        for section, settings in yaml.safe_load(path.read_text()).items():
            # RL Zoo's schedules and dicts are texts
            texts = [text for text in settings.values() if isinstance(text, str) and not text.startswith(("lin_", "dict("))]
            assert not any(character.isdigit() for text in texts for character in text), f"{path}: {section}"


def test_a_preset_that_there_is_not_is_named():
    with pytest.raises(ValueError, match=r"name='rainbw': must be one of 'hessel', 'dopamine'"):
        preset("rainbw")


def test_the_small_network_refuses_what_it_cannot_see():
    for env in (FakeImageEnv(6, 24, 84, 4, channel_first=True), "CartPole-v1", SimpleMultiObsEnv()):
        with pytest.raises(ValueError, match=r"observation_space=.*at least 25 by 25"):
            RainbowDQN("DataEfficientCnnPolicy", env)
    small = RainbowDQN("DataEfficientCnnPolicy", FakeImageEnv(6, 25, 49, 1, channel_first=True), buffer_size=10)
    assert small.q_net.features_dim == 64
    assert small.q_net(th.zeros(3, 1, 25, 49, dtype=th.uint8)).shape == (3, 6)


def manager_of_rl_zoo() -> type:
    """What the hook changes in RL Zoo, to be changed once in every test."""

    class ExperimentManager:
        def __init__(self, algo, config=None):
            self.algo, self.config, self.vec_env_class = algo, config, vec_env.SubprocVecEnv

        def objective(self, trial):
            return self.specified_callbacks

    return ExperimentManager


def test_another_plug_in_that_has_wrapped_rl_zoo_first_is_no_obstacle():
    ExperimentManager = manager_of_rl_zoo()
    original = ExperimentManager.__init__

    @functools.wraps(original)
    def wrapped(self, *args, **kwargs):
        original(self, *args, **kwargs)

    ExperimentManager.__init__ = wrapped
    for _ in range(2):  # the second time changes nothing
        zoo.PATCHES["rl_zoo3.exp_manager"](SimpleNamespace(ExperimentManager=ExperimentManager))
        manager = ExperimentManager("rainbow", "hessel")
        assert manager.config == str(hyperparams_path("hessel"))
        assert manager.vec_env_class.func is SubprocVecEnv
        assert manager.vec_env_class.keywords == {"timeout": 600.0}
        assert ExperimentManager("dqn").config is None
        assert ExperimentManager("dqn").vec_env_class is vec_env.SubprocVecEnv
    assert ExperimentManager.__init__.__wrapped__ is wrapped


def test_our_own_entry_says_how_it_is_used(monkeypatch):
    monkeypatch.setattr("sys.argv", ["zoo.py", "--algo"])
    with pytest.raises(SystemExit, match=r"^usage: python -m sb3_rainbow.zoo \{train,enjoy"):
        zoo.main()


def test_what_a_trial_has_stored_trains():
    trial = optuna.create_study().ask()
    sampled = tuning.sample_rainbow_params(trial, 2, 1, {})
    assert tuning.convert_rainbow_params(trial.params) == sampled
    RainbowDQN("MlpPolicy", "CartPole-v1", **sampled | {"buffer_size": 50, "learning_starts": 8}).learn(30)


def test_trials_of_a_search_share_no_checkpoints():
    ExperimentManager = manager_of_rl_zoo()
    zoo.PATCHES["rl_zoo3.exp_manager"](SimpleNamespace(ExperimentManager=ExperimentManager))
    checkpoints = {"sb3_rainbow.checkpoint.ResumableCheckpointCallback": {"save_freq": 10, "folder": "c", "resume": True}}
    other = {"sb3_rainbow.callbacks.FewerSteps": {"n_steps": 1, "after": 0.5}}
    manager = ExperimentManager("rainbow")
    for given, kept in ((checkpoints, []), ([other, checkpoints], [other]), (other, [other]), (None, [])):
        manager.specified_callbacks = given
        for _ in range(2):
            assert manager.objective(None) == kept


def test_a_name_that_somebody_else_has_taken_in_rl_zoo_is_left_to_them():
    module = SimpleNamespace(ALGOS={"rainbow": DQN})
    with pytest.warns(RuntimeWarning, match=r"'rainbow' is .*DQN.*: left as it is"):
        zoo.PATCHES["rl_zoo3.utils"](module)
    assert module.ALGOS == {"rainbow": DQN}

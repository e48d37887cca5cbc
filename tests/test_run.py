"""It runs wherever SB3's DQN runs: arguments, spaces, environments, callbacks, wrappers."""

import contextlib
import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from torch import nn

from sb3_rainbow import PrioritizedNStepReplayBuffer, RainbowDQN

PARTS = [
    {},
    {"n_steps": 1},
    {"double_q": False},
    {"dueling": False},
    {"noisy": False},
    {"noisy": "independent"},
    {"prioritized": False},
    {"noisy": False, "dueling": False},
    {"n_atoms": 51},
    {"n_atoms": 2, "dueling": False},
    {"n_atoms": 20, "v_min": None, "v_max": None},
    {"n_atoms": 51, "v_min": 0, "v_max": 1e6, "noisy": False, "dueling": False, "double_q": False, "prioritized": False},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_combinations_of_parts_train(parts):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", learning_starts=50, policy_kwargs={"net_arch": [16]}, **parts)
    model.learn(200)
    assert model._n_updates > 0
    assert all(p.isfinite().all() for p in model.policy.parameters())


@pytest.mark.parametrize(
    "arguments",
    [
        {"buffer_size": 1},
        {"batch_size": 1},
        {"learning_starts": 1},
        {"gradient_steps": -1},
        {"gradient_steps": 0},
        {"train_freq": (1, "episode")},
        {"train_freq": (3, "step"), "gradient_steps": 2},
        {"n_steps": 50, "buffer_size": 20},
        {"tau": 0.01, "target_update_interval": 1},
        {"gamma": 0.0},
        {"gamma": 1.0},
        {"alpha": 1.0, "beta0": 1.0},
        {"alpha": 0.0, "beta0": 0.0},
        {"learning_rate": LinearSchedule(1e-3, 1e-4, 0.5)},
        {"replay_buffer_kwargs": {"weight_norm": "memory"}},
        {"policy_kwargs": {"net_arch": [], "activation_fn": nn.Tanh}},
        {"policy_kwargs": {"optimizer_class": th.optim.RMSprop}},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_unusual_arguments_run(arguments):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", **{"learning_starts": 10} | arguments)
    model.learn(120)
    model.learn(30, reset_num_timesteps=False)
    assert model.num_timesteps >= 150


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_several_environments_train(n_envs, vec_env_class):
    env = make_vec_env("CartPole-v1", n_envs, vec_env_cls=vec_env_class)
    model = RainbowDQN("MlpPolicy", env, learning_starts=30, buffer_size=100).learn(300)
    assert model.replay_buffer.buffer_size == 100 // n_envs
    assert model.replay_buffer.full
    assert model._n_updates > 0
    env.close()


def test_a_warning_says_that_the_target_is_updated_at_every_step():
    with pytest.warns(UserWarning, match="target network"):
        RainbowDQN("MlpPolicy", make_vec_env("CartPole-v1", 3), target_update_interval=1)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(5),
        spaces.Box(-1, 1, (2, 3), np.float64),
        spaces.Box(0, 255, (2, 3, 4), np.uint8),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_envs", [1, 2])
def test_every_observation_space_that_sb3_knows_trains(space, n_envs):
    class Env(gym.Env):
        observation_space, action_space = space, spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 1.0, bool(np.random.rand() < 0.1), False, {}

    model = RainbowDQN("MlpPolicy", make_vec_env(Env, n_envs), learning_starts=20, buffer_size=50, train_freq=2)
    model.learn(100)
    assert model._n_updates > 0
    evaluate_policy(model, Monitor(Env()), n_eval_episodes=2)


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(3)], ids=str)
def test_other_action_spaces_are_refused_by_sb3(space):
    with pytest.raises(AssertionError, match="only supports"):
        RainbowDQN("MlpPolicy", IdentityEnv(space=space))


@pytest.mark.parametrize("channel_first", [True, False])
def test_images_train_and_are_transposed(channel_first):
    env = FakeImageEnv(screen_height=40, screen_width=41, n_channels=3, channel_first=channel_first)
    model = RainbowDQN("CnnPolicy", env, buffer_size=250, learning_starts=20, policy_kwargs={"net_arch": [16]})
    model.learn(60)
    assert model._n_updates > 0
    obs, _ = env.reset()
    assert model.predict(obs, deterministic=True)[0].shape == ()


def test_stacked_images_of_several_environments_train():
    env = VecFrameStack(make_vec_env(lambda: FakeImageEnv(4, 40, 41, 1), 2), 3)
    model = RainbowDQN("CnnPolicy", env, buffer_size=100, learning_starts=20, policy_kwargs={"net_arch": [16]})
    model.learn(80)
    assert model._n_updates > 0
    assert model.replay_buffer._observations._stores[""].n_stack == 3


@pytest.mark.parametrize("policy", ["CnnPolicy", "DataEfficientCnnPolicy"])
def test_normalised_float_images_train(policy):
    class Env(gym.ObservationWrapper):
        observation_space = spaces.Box(0, 1, (3, 40, 41), np.float32)

        def observation(self, observation):
            return np.moveaxis(observation / 255, -1, 0).astype(np.float32)

    model = RainbowDQN(
        policy,
        Env(FakeImageEnv(4, 40, 41, 3)),
        buffer_size=50,
        learning_starts=20,
        policy_kwargs={"normalize_images": False, "net_arch": [16]},
    )
    model.learn(60)
    assert model._n_updates > 0


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("parts", [{}, {"n_steps": 1, "prioritized": False}], ids=str)
def test_dict_observations_with_images_train(n_envs, parts):
    env = make_vec_env(lambda: SimpleMultiObsEnv(random_start=False), n_envs)
    model = RainbowDQN(
        "MultiInputPolicy",
        env,
        buffer_size=50,
        learning_starts=20,
        policy_kwargs={"net_arch": [16], "features_extractor_kwargs": {"cnn_output_dim": 16}},
        **parts,
    )
    model.learn(100)
    assert model._n_updates > 0
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)


class DictEnv(gym.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict({"obs": env.observation_space})

    def observation(self, observation):
        return {"obs": observation}


def test_a_dict_of_one_vector_and_the_vector_give_the_same_actions():
    models = [
        RainbowDQN(policy, env, seed=1, learning_starts=50, policy_kwargs={"net_arch": [16]}).learn(300)
        for policy, env in (("MlpPolicy", gym.make("CartPole-v1")), ("MultiInputPolicy", DictEnv(gym.make("CartPole-v1"))))
    ]
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    actions = [model.predict(o, deterministic=True)[0].tolist() for model, o in zip(models, (obs, {"obs": obs}), strict=True)]
    assert actions[0] == actions[1]
    assert th.equal(*(th.cat([p.flatten() for p in m.policy.parameters()]) for m in models))


def test_vecnormalize_trains_and_its_rewards_are_stored_raw(monkeypatch):
    env = VecNormalize(make_vec_env("CartPole-v1", 2), clip_reward=0.1)
    model = RainbowDQN("MlpPolicy", env, learning_starts=50, seed=0).learn(200)
    assert set(np.unique(model.replay_buffer.rewards[:50])) == {1.0}
    seen, sample = [], model.replay_buffer.sample
    monkeypatch.setattr(
        model.replay_buffer, "sample", lambda *args, **kwargs: seen.append(sample(*args, **kwargs)) or seen[-1]
    )
    model.train(3, 8)
    assert len(seen) == 3
    assert max(batch.rewards.max() for batch in seen) <= 0.3, "three times the largest normalised one"


def test_dict_observations_are_stored_raw_and_sampled_normalised():
    env = VecNormalize(make_vec_env(lambda: DictEnv(gym.make("CartPole-v1")), 2), norm_obs_keys=["obs"])
    model = RainbowDQN("MultiInputPolicy", env, learning_starts=50, seed=0).learn(200)
    buffer = model.replay_buffer
    leaves = np.arange(20)
    stored, samples = buffer.observations["obs"].reshape(-1, 4)[leaves], buffer._get_samples(leaves, env)
    assert (np.abs(stored[:, :2]) < 2.4 + 0.5).all()
    np.testing.assert_array_equal(samples.observations["obs"], env.normalize_obs({"obs": stored})["obs"])
    one = {"obs": stored[0]}
    model.set_random_seed(1)
    actions = [model.predict(one, deterministic=False)[0] for _ in range(20)]
    assert {action.shape for action in actions} == {()}
    assert all(action in env.action_space for action in actions)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_observations_may_be_lists_and_what_reset_returns_is_named(rate):
    env = gym.make("CartPole-v1")
    model = RainbowDQN("MlpPolicy", env, buffer_size=100)
    model.exploration_rate = rate
    for observation in ([0.1, 0.2, 0.3, 0.4], (0.1, 0.2, 0.3, 0.4)):
        assert model.predict(observation)[0] in (0, 1)
    assert model.predict([[0.1, 0.2, 0.3, 0.4]] * 5)[0].shape == (5,)
    with pytest.raises(ValueError, match="tuple to the predict"):
        model.predict(env.reset())


def test_it_trains_before_it_has_ever_collected():
    model = RainbowDQN("MlpPolicy", "CartPole-v1", buffer_size=100)
    obs = np.zeros((1, 4), np.float32)
    for _ in range(20):
        model.replay_buffer.add(obs, obs, np.zeros(1), np.ones(1), np.zeros(1), [{}])
    before = model.q_net.value_stream[-1].bias_mu.clone()
    model.train(2, batch_size=8)
    first_logger = model.logger
    assert first_logger.name_to_value["train/n_updates"] == 2
    assert (model.q_net.value_stream[-1].bias_mu != before).all()
    model.learn(120)
    assert model.logger is not first_logger


def test_callbacks_see_training_and_can_stop_it(tmp_path):
    checkpoints = CheckpointCallback(100, str(tmp_path / "checkpoints"), save_replay_buffer=True)
    evaluation = EvalCallback(
        Monitor(gym.make("CartPole-v1")),
        callback_on_new_best=StopTrainingOnRewardThreshold(1, verbose=0),
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        eval_freq=150,
        warn=False,
        verbose=0,
    )
    model = RainbowDQN("MlpPolicy", "CartPole-v1", learning_starts=20)
    model.learn(10_000, callback=CallbackList([checkpoints, evaluation]))
    assert model.num_timesteps == 150
    saved = sorted(path.name for path in tmp_path.rglob("*.*"))
    assert saved == ["best_model.zip", "evaluations.npz", "rl_model_100_steps.zip", "rl_model_replay_buffer_100_steps.pkl"]
    model.learn(10_000, callback=StopTrainingOnMaxEpisodes(3))
    assert model.num_timesteps < 10_000
    seen = []
    model.learn(100, callback=lambda local_variables, _: seen.append(local_variables["self"].num_timesteps) or True)
    assert seen == list(range(1, 101))


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_the_progress_bar_is_sb3s(capsys):
    RainbowDQN("MlpPolicy", "CartPole-v1", learning_starts=20).learn(100, progress_bar=True)
    assert "100" in capsys.readouterr().out


def test_it_learns_to_repeat_what_it_sees():
    model = RainbowDQN(
        "MlpPolicy",
        make_vec_env(lambda: IdentityEnv(4), 1),
        gamma=0.0,
        learning_rate=3e-3,
        learning_starts=100,
        target_update_interval=100,
        buffer_size=1500,
        exploration_fraction=0.3,
        policy_kwargs={"net_arch": [32]},
        seed=0,
    ).learn(1500)
    mean, _ = evaluate_policy(model, Monitor(IdentityEnv(4)), n_eval_episodes=5)
    assert mean > 95  # of 100


class BatchNormDropoutExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 4)
        self.batch_norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.dropout(self.batch_norm(observations))


def test_statistics_move_in_training_only_and_are_copied_to_the_target():
    model = RainbowDQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=0,
        tau=0.0,  # copies statistics nevertheless
        target_update_interval=1,
        train_freq=(1, "step"),
        gradient_steps=0,
        policy_kwargs={"features_extractor_class": BatchNormDropoutExtractor, "net_arch": [8]},
        seed=0,
    )
    online, target = (net.features_extractor.batch_norm for net in (model.q_net, model.q_net_target))
    model.learn(50)
    assert (online.running_mean == 0).all(), "collecting changed statistics"
    model.train(gradient_steps=2, batch_size=16)
    assert (online.running_mean != 0).any()
    assert (target.running_mean == 0).all()
    model._on_step()
    assert th.equal(online.running_mean, target.running_mean)
    obs = np.ones((5, 4), np.float32)
    model.policy.set_training_mode(True)
    actions = [model.predict(obs, deterministic=True)[0].tolist() for _ in range(20)]
    assert all(action == actions[0] for action in actions), "dropout was on"


@pytest.mark.parametrize("n_envs", [1, 2])
def test_atari_trains(n_envs):
    env = VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", n_envs, seed=0), 4)
    model = RainbowDQN("CnnPolicy", env, buffer_size=500, learning_starts=50, seed=0).learn(100)
    assert model._n_updates > 0
    assert sum(p.numel() for p in model.q_net.parameters()) == 6_507_690
    assert model.replay_buffer._observations._stores[""].n_stack == 4
    env.close()


def test_a_new_call_of_learn_closes_the_open_episode():
    model = RainbowDQN("MlpPolicy", "CartPole-v1", learning_starts=1000, train_freq=1, seed=0).learn(5)
    model.learn(5)
    timeouts = model.replay_buffer.timeouts[:10, 0]
    assert timeouts.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    model.learn(5, reset_num_timesteps=False)  # goes on with the episode
    assert model.replay_buffer.timeouts[9, 0] == 0


def test_a_replay_with_its_own_alpha_gets_priorities():
    settings = {"replay_buffer_class": PrioritizedNStepReplayBuffer, "buffer_size": 100, "learning_starts": 20, "seed": 0}
    given = RainbowDQN("MlpPolicy", "CartPole-v1", prioritized=False, replay_buffer_kwargs={"alpha": 0.5}, **settings).learn(
        60
    )
    expected = RainbowDQN("MlpPolicy", "CartPole-v1", **settings).learn(60)
    assert given.replay_buffer.max_priority == expected.replay_buffer.max_priority != 1


class Clock(gym.Env):
    """Observations are the episode and the step in it; episodes have ten."""

    observation_space = spaces.Box(0, 99, (2,))
    action_space = spaces.Discrete(2)
    episode = t = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.array([self.episode, self.t], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.episode, self.t], np.float32), 1.0, self.t == 10, False, {}


@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_after_a_callback_has_stopped_it_collecting_goes_on_where_it_was(n_envs, wrap):
    settings = {"learning_starts": 1000, "buffer_size": 100 * n_envs, "train_freq": 1, "seed": 0}

    def model() -> RainbowDQN:  # whose environments complain if they are reset in the middle of an episode
        return RainbowDQN(
            "MlpPolicy", wrap(make_vec_env(Clock, n_envs, monitor_kwargs={"allow_early_resets": False})), **settings
        )

    whole = model().learn(40 * n_envs)
    stopped = model()
    stopped.learn(1000, callback=ConvertCallback(lambda *_: stopped.num_timesteps != 20 * n_envs))
    stopped.learn(20 * n_envs, reset_num_timesteps=False)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert np.array_equal(getattr(stopped.replay_buffer, name)[:40], getattr(whole.replay_buffer, name)[:40]), name
    assert stopped._n_calls == whole._n_calls == 40
    assert len(stopped.ep_info_buffer) == len(whole.ep_info_buffer) == 4 * n_envs


@pytest.mark.parametrize("stop", [10, 15, 20])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_after_a_training_was_stopped_no_transition_goes_on_into_another_episode(stop, error):
    def halt(*_) -> bool:
        if error is not None and model.num_timesteps == stop:
            raise error
        return model.num_timesteps != stop

    model = RainbowDQN("MlpPolicy", Clock(), learning_starts=1000, buffer_size=100, seed=0)
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        model.learn(1000, callback=ConvertCallback(halt))
    model.learn(25, reset_num_timesteps=False)
    batch = model.replay_buffer.sample(500)
    assert (batch.observations[:, 0] == batch.next_observations[:, 0]).all()
    k = batch.discounts.log() / math.log(0.99)
    assert th.allclose(batch.next_observations[:, 1:] - batch.observations[:, 1:], k, atol=1e-3)
    assert ((batch.next_observations[:, 1:] == 10) == (batch.dones == 1)).all()

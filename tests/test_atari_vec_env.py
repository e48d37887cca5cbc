"""AtariVecEnv does what SB3's AtariWrapper, Monitor, VecFrameStack and VecTransposeImage do, and can be resumed."""

from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from resumable_training import fingerprint
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from sb3_rainbow import RainbowDQN
from sb3_rainbow.checkpoint import ResumableCheckpointCallback, load
from sb3_rainbow.envs import AtariVecEnv, atari

BREAKOUT = "BreakoutNoFrameskip-v4"


def make(n_envs=2, seed=3, n_stack=4, game=BREAKOUT, **arguments):
    stack = {"n_stack": n_stack}
    return make_atari_env(game, n_envs, seed=seed, vec_env_cls=AtariVecEnv, vec_env_kwargs=stack, **arguments)


def play(env, steps, seed=0):
    """Everything that random play gives."""
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    yield env.reset(), None, None, None
    for _ in range(steps):
        yield env.step(rng.integers(env.action_space.n, size=env.num_envs))


def assert_same(theirs, ours):
    for x, y in zip(theirs[:3], ours[:3], strict=True):
        np.testing.assert_array_equal(x, y)
        assert (x is None and y is None) or x.dtype == y.dtype
    for x, y in zip(theirs[3] or [], ours[3] or [], strict=True):
        assert x.keys() == y.keys()
        game_over = "episode" in x
        if game_over:
            assert (x["episode"]["r"], x["episode"]["l"]) == (y["episode"]["r"], y["episode"]["l"])
        if "terminal_observation" in x:
            # SB3 takes the maximum of older frames if the game ends within a skip; what follows has no value then
            last = x["terminal_observation"].shape[0] - (1 if game_over else 0)
            np.testing.assert_array_equal(x["terminal_observation"][:last], y["terminal_observation"][:last])
        for name in x.keys() - {"episode", "terminal_observation"}:
            assert x[name] == y[name], name


@pytest.mark.parametrize(
    ("game", "wrapper_kwargs", "env_kwargs"),
    [
        ("Breakout", {}, {}),  # FIRE, five lives
        ("SpaceInvaders", {}, {}),  # no need to fire after a life
        ("Breakout", {"terminal_on_life_loss": False, "clip_reward": False}, {}),
        ("Breakout", {"frame_skip": 3, "screen_size": 64}, {}),
        ("Breakout", {"terminal_on_life_loss": False}, {"full_action_space": True, "max_episode_steps": 300}),
    ],
)
def test_it_gives_what_sb3s_wrappers_give(game, wrapper_kwargs, env_kwargs):
    # Without no-ops: their number is drawn from another generator
    kwargs = {"wrapper_kwargs": {"noop_max": 0} | wrapper_kwargs, "env_kwargs": env_kwargs}
    arguments = {"game": f"{game}NoFrameskip-v4", **kwargs}
    plain = {"env_id": arguments["game"], "n_envs": 2, "seed": 3, **kwargs}
    theirs, ours = VecTransposeImage(VecFrameStack(make_atari_env(**plain), 4)), make(**arguments)
    single = VecTransposeImage(VecFrameStack(make(n_stack=1, **arguments), 4))
    assert theirs.observation_space == ours.observation_space == single.observation_space
    ends = 0
    for expected, got, stacked_by_sb3 in zip(play(theirs, 450), play(ours, 450), play(single, 450), strict=True):
        assert_same(expected, got)
        assert_same(expected, stacked_by_sb3)
        ends += sum("episode" in info for info in expected[3] or [])
    assert ends > 0
    for env in (theirs, ours, single):
        env.close()


def test_rl_zoos_own_time_limit_is_one(monkeypatch):
    class OfRLZoo(TimeLimit):
        """As RL Zoo puts it in the place of Gymnasium's."""

    monkeypatch.setattr("gymnasium.wrappers.TimeLimit", OfRLZoo)
    env = make(1, env_kwargs={"max_episode_steps": 200})
    assert env.games[0]._settings["max_num_frames_per_episode"] == 200
    env.close()


def test_a_game_starts_with_0_to_29_no_ops_and_fire_and_a_step():
    env = make(1)
    lengths = []
    for seed in range(20):
        env.seed(seed)
        env.reset()
        lengths.append(env.step([0])[3][0]["episode_frame_number"] - 3 * 4)
    assert min(lengths) >= 0
    assert max(lengths) <= 29
    assert len(set(lengths)) > 8
    env.close()


def test_the_seed_decides_everything():
    first, same, other = (list(play(make(seed=seed), 150)) for seed in (3, 3, 4))
    for x, y in zip(first, same, strict=True):
        assert_same(x, y)
    assert any((x[0] != y[0]).any() for x, y in zip(first, other, strict=True))


def test_sticky_actions_are_ales():
    # With 1, the first action is repeated for ever: a no-op, so that no game begins
    stuck, sticky = make(env_kwargs={"repeat_action_probability": 1.0}), make(env_kwargs={"repeat_action_probability": 0.25})
    frames = [step[0][:, -1] for step in play(stuck, 40)]
    assert all((frame == frames[5]).all() for frame in frames[5:])
    differ = [(x[0] != y[0]).any() for x, y in zip(play(make(), 60), play(sticky, 60), strict=True)]
    assert any(differ)


def test_a_game_is_truncated_at_its_most_frames():
    whole_games = {"noop_max": 0, "terminal_on_life_loss": False}
    env = make(1, env_kwargs={"max_num_frames_per_episode": 200}, wrapper_kwargs=whole_games)
    env.reset()
    for _ in range(100):
        _, _, dones, infos = env.step([0])
        if dones[0]:
            break
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["episode"]["l"] == 200
    env.close()


def test_games_of_a_few_frames_do_not_wait_for_each_other(monkeypatch):
    monkeypatch.setattr(atari, "ThreadPoolExecutor", lambda **_: ThreadPoolExecutor(1))
    env = make(2, env_kwargs={"max_num_frames_per_episode": 8}, wrapper_kwargs={"noop_max": 0})
    with ThreadPoolExecutor(1) as other:  # firing ends the game, and the next one has not begun
        steps = other.submit(lambda: [env.reset(), *(env.step(np.zeros(2, int)) for _ in range(10))])
        try:
            assert len(steps.result(timeout=60)) == 11
        finally:
            env._pool.shutdown(cancel_futures=True)


def test_monitors_write_whole_games(tmp_path):
    env = make(2, monitor_dir=str(tmp_path))
    scores = [info["episode"]["r"] for step in play(env, 500) for info in step[3] or [] if "episode" in info]
    env.close()
    written = load_results(str(tmp_path))
    assert len(scores) > 1
    assert sorted(written["r"]) == sorted(scores)
    assert (written["l"] > 200).all()


def test_it_takes_the_place_of_a_dummy_vec_env():
    ours, taken = make(n_stack=1), AtariVecEnv(make_atari_env(BREAKOUT, 2, seed=3))
    for x, y in zip(play(ours, 30), play(taken, 30), strict=True):
        assert_same(x, y)
    assert taken.env_is_wrapped(AtariWrapper) == taken.env_is_wrapped(Monitor) == [True, True]
    assert taken.get_attr("spec")[1].id == BREAKOUT
    assert taken.get_images()[1].shape == (84, 84, 3)


# 20: the start of a checkpoint's moves is sown anew several times
@pytest.mark.parametrize("reseed", [20, 10_000])
def test_a_training_is_resumed_exactly(tmp_path, monkeypatch, reseed):
    monkeypatch.setattr(atari, "RESEED", reseed)
    settings = {"buffer_size": 300, "learning_starts": 40, "train_freq": 8, "batch_size": 8, "seed": 1}
    whole = RainbowDQN("CnnPolicy", make(), **settings)
    whole.learn(480, callback=ResumableCheckpointCallback(200, tmp_path, keep=9))
    env = make(seed=77)
    env.reset()
    resumed = load(sorted(tmp_path.iterdir())[0], env)
    assert resumed.num_timesteps < 300
    resumed.learn(480 - resumed.num_timesteps, reset_num_timesteps=False)
    assert fingerprint(resumed) == fingerprint(whole)


@pytest.mark.parametrize("received", [False, True])
def test_an_interrupted_step_does_no_harm(monkeypatch, received):
    env = make()
    env.reset()
    if received:  # Ctrl-C right after ALE has answered
        game = env.games[0]._emulators[0]
        monkeypatch.setattr(game, "_ale", Interrupted(game._ale))
        with pytest.raises(KeyboardInterrupt):
            env.step([0, 0])
        monkeypatch.undo()
    else:
        env.step_async([0, 0])
    assert env.reset().shape == (2, 4, 84, 84)
    # Every answer is that to its own question: frames go on by four
    counts = [env.step([0, 0])[3][0]["episode_frame_number"] for _ in range(6)]
    assert counts == list(range(counts[0], counts[0] + 24, 4))
    assert all(not game._emulators[0]._pending for game in env.games)
    env.seed(3)
    for x, y in zip(play(env, 30), play(make(), 30), strict=True):
        assert_same(x, y)


class Interrupted:
    """ALE, with a Ctrl-C in its next answer."""

    def __init__(self, ale):
        self._ale = ale

    def __getattr__(self, name):
        return getattr(self._ale, name)

    def recv(self):
        self._ale.recv()
        raise KeyboardInterrupt


@pytest.mark.parametrize("actions", [[0, 4], [-1, 0], [0], [0, 0, 0]])
def test_actions_outside_the_space_are_refused_before_anything_is_played(actions):
    env, other = make(), make()
    env.reset()
    other.reset()
    with pytest.raises(ValueError, match=r"actions=.*must be 2 of Discrete\(4\)"):
        env.step(actions)
    assert_same(env.step([0, 0]), other.step([0, 0]))


def test_a_checkpoint_of_other_settings_is_refused():
    env = make()
    env.reset()
    with pytest.raises(ValueError, match=r"noop_max=30: must be 5"):
        env.load_state_dict(make(wrapper_kwargs={"noop_max": 5}).state_dict())


def test_what_it_cannot_play_is_refused():
    with pytest.raises(ValueError, match="CartPole.*must be an Atari game"):
        make_vec_env("CartPole-v1", vec_env_cls=AtariVecEnv)
    with pytest.raises(ValueError, match="frameskip=4: must be 1"):
        make(game="ALE/Breakout-v5")
    with pytest.raises(ValueError, match="must be in SB3's AtariWrapper"):
        make_vec_env(BREAKOUT, vec_env_cls=AtariVecEnv)
    with pytest.raises(ValueError, match="nothing else around"):
        make_vec_env(BREAKOUT, wrapper_class=gym.wrappers.GrayscaleObservation, vec_env_cls=AtariVecEnv)
    with pytest.raises(ValueError, match="nothing else around"):  # it would count other steps
        AtariVecEnv([lambda: Monitor(AtariWrapper(gym.make(BREAKOUT)))])
    with pytest.raises(ValueError, match="repeat_action_probability"):
        make(wrapper_kwargs={"action_repeat_probability": 0.25})
    with pytest.raises(ValueError, match="mode=12: must be None"):
        make(env_kwargs={"mode": 12})
    dummy = make_atari_env(BREAKOUT, 1)
    dummy.envs[0].unwrapped.render_mode = "human"  # not an argument, as ALE would open a window
    with pytest.raises(ValueError, match="render_mode=human"):
        AtariVecEnv(dummy)
    with pytest.raises(ValueError, match="monitor_kwargs"):
        make(monitor_kwargs={"info_keywords": ("lives",)})
    with pytest.raises(ValueError, match="must be a DummyVecEnv"):
        AtariVecEnv(VecFrameStack(make(), 4))
    with pytest.raises(ValueError, match="n_stack=0"):
        make(n_stack=0)
    with pytest.raises(ValueError, match=r"len\(env_fns\)=0"):
        AtariVecEnv([])
    assert isinstance(make(), DummyVecEnv)

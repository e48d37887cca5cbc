"""n-step returns, against a plain list of episodes and against SB3's NStepReplayBuffer."""

from typing import NamedTuple

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_rainbow import PrioritizedNStepReplayBuffer
from sb3_rainbow.replay.arrays import to_numpy

GAMMA = 0.9
OBS = spaces.Box(-1e6, 1e6, (2,), np.float64)
ACTIONS = spaces.Discrete(50)


class Step(NamedTuple):
    obs: np.ndarray
    next_obs: np.ndarray
    action: int
    reward: float
    done: bool
    timeout: bool


def random_history(rng: np.random.Generator, n_envs: int, length: int) -> list[list[Step]]:
    """Steps of every environment. Observations are unique over environments, episodes and steps, so that any mixing shows."""
    history: list[list[Step]] = [[] for _ in range(n_envs)]
    p_end = rng.uniform(0, 0.5)
    for env in range(n_envs):
        episode, step = 0, 0
        for _ in range(length):
            ended = bool(rng.random() < p_end)
            obs, next_obs = (np.array([1000.0 * env + episode, s]) for s in (step, step + 1))
            timeout = ended and bool(rng.random() < 0.5)
            history[env].append(Step(obs, next_obs, int(rng.integers(50)), float(np.float32(rng.normal())), ended, timeout))
            episode, step = (episode + 1, 0) if ended else (episode, step + 1)
    return history


def fill(buffer, history: list[list[Step]]) -> None:
    for steps in zip(*history, strict=True):
        buffer.add(
            np.stack([s.obs for s in steps]),
            np.stack([s.next_obs for s in steps]),
            np.array([s.action for s in steps]),
            np.array([s.reward for s in steps]),
            np.array([s.done for s in steps]),
            [{"TimeLimit.truncated": True} if s.timeout else {} for s in steps],
        )


def expected(steps: list[Step], start: int, n_steps: int) -> tuple[float, float, np.ndarray, float]:
    """Return, discount, next observation and done of the window that starts at one step, by the definition."""
    value, k = 0.0, 0
    while True:
        step = steps[start + k]
        value += GAMMA**k * step.reward
        k += 1
        if step.done or k == n_steps or start + k == len(steps):
            return value, GAMMA**k, step.next_obs, float(step.done and not step.timeout)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    n_envs=st.integers(1, 8),
    n_steps=st.integers(1, 10),
    n_slots=st.sampled_from([1, 2, 3, 7, 23]),
    length=st.integers(1, 60),
)
def test_every_window_is_that_of_a_plain_list_of_episodes(backend, seed, n_envs, n_steps, n_slots, length):
    history = random_history(np.random.default_rng(seed), n_envs, length)
    buffer = PrioritizedNStepReplayBuffer(
        n_slots * n_envs, OBS, ACTIONS, "cpu", n_envs=n_envs, n_steps=n_steps, gamma=GAMMA, seed=0
    )
    fill(buffer, history)
    assert buffer.size() == min(length, n_slots)
    for env in range(n_envs):
        for start in range(max(0, length - n_slots), length):
            leaf = (start % n_slots) * n_envs + env
            sample = buffer._get_samples(np.array([leaf]))
            value, discount, next_obs, done = expected(history[env], start, n_steps)
            step = history[env][start]
            np.testing.assert_allclose(sample.rewards.item(), value, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(sample.discounts.item(), discount, rtol=1e-6)
            assert sample.observations.tolist() == [step.obs.tolist()]
            assert sample.next_observations.tolist() == [next_obs.tolist()]
            assert sample.dones.item() == done
            assert sample.actions.item() == step.action


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 10])
@pytest.mark.parametrize(("n_envs", "length"), [(1, 7), (1, 40), (3, 11), (4, 50), (8, 29)])
def test_samples_equal_those_of_sb3_for_the_same_indices(backend, n_envs, n_steps, length):
    n_slots = 23
    history = random_history(np.random.default_rng(n_envs * 100 + n_steps), n_envs, length)
    ours = PrioritizedNStepReplayBuffer(n_slots * n_envs, OBS, ACTIONS, "cpu", n_envs=n_envs, n_steps=n_steps, gamma=GAMMA)
    theirs = NStepReplayBuffer(n_slots * n_envs, OBS, ACTIONS, "cpu", n_envs=n_envs, n_steps=n_steps, gamma=GAMMA)
    fill(ours, history)
    fill(theirs, history)
    slots = np.random.default_rng(0).integers(0, min(length, n_slots), 200)
    np.random.seed(0)
    envs = np.random.randint(0, n_envs, size=slots.shape)  # what SB3 is about to draw
    np.random.seed(0)
    reference = theirs._get_samples(slots)
    sample = ours._get_samples(slots * n_envs + envs)
    for name in ("observations", "actions", "next_observations", "dones"):
        assert (getattr(sample, name) == getattr(reference, name)).all(), name
        assert getattr(sample, name).dtype == getattr(reference, name).dtype, name
    np.testing.assert_allclose(sample.rewards, reference.rewards, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sample.discounts, reference.discounts, rtol=1e-6)
    for name in ("actions", "rewards", "dones", "timeouts", "observations", "next_observations"):
        assert (getattr(ours, name) == getattr(theirs, name)).all(), name


def test_reading_changes_no_byte(backend):
    buffer = PrioritizedNStepReplayBuffer(60, OBS, ACTIONS, "cpu", n_envs=3, n_steps=4, gamma=GAMMA, seed=0)
    fill(buffer, random_history(np.random.default_rng(5), 3, 33))
    buffer.sample(1)  # what it makes for all samples is counted among the arrays
    before = [to_numpy(array).copy() for array in buffer._transitions.arrays], buffer.observations, buffer.next_observations
    for _ in range(10):
        buffer.sample(32)
    after = [to_numpy(array) for array in buffer._transitions.arrays], buffer.observations, buffer.next_observations
    for old, new in zip([*before[0], *before[1:]], [*after[0], *after[1:]], strict=True):
        assert old.tobytes() == new.tobytes()


def test_timeouts_can_be_taken_for_terminations():
    buffer = PrioritizedNStepReplayBuffer(10, OBS, ACTIONS, "cpu", n_steps=3, gamma=GAMMA, handle_timeout_termination=False)
    steps = [Step(np.array([0.0, s]), np.array([0.0, s + 1]), 0, 1.0, s == 2, s == 2) for s in range(4)]
    fill(buffer, [steps])
    assert buffer._get_samples(np.array([1])).dones.item() == 1


def test_a_trajectory_closed_from_outside_bootstraps_and_is_not_crossed():
    buffer = PrioritizedNStepReplayBuffer(10, OBS, ACTIONS, "cpu", n_steps=3, gamma=GAMMA)
    steps = [Step(np.array([0.0, s]), np.array([0.0, s + 1]), 0, 1.0, False, False) for s in range(4)]
    fill(buffer, [steps[:2]])
    buffer.truncate_last_trajectory()
    fill(buffer, [steps[2:]])
    sample = buffer._get_samples(np.array([0]))
    assert sample.next_observations.tolist() == [[0.0, 2.0]]
    assert (sample.dones.item(), sample.rewards.item()) == (0, pytest.approx(1 + GAMMA))
    assert buffer.timeouts.ravel().tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_the_discount_of_what_is_stored_may_change():
    buffer = PrioritizedNStepReplayBuffer(10, OBS, ACTIONS, "cpu", n_steps=3, gamma=GAMMA)
    fill(buffer, [[Step(np.zeros(2), np.zeros(2), 0, 1.0, False, False)] * 5])
    for gamma in (0.5, 0.6, 0.5):
        buffer.gamma = gamma
        sample = buffer._get_samples(np.array([0]))
        assert (sample.rewards.item(), sample.discounts.item()) == pytest.approx((1 + gamma + gamma**2, gamma**3))
    assert len(buffer._transitions._windows) == 1  # not one for each value that a schedule takes


def test_a_wild_value_beyond_a_window_does_not_leak_into_it():
    buffer = PrioritizedNStepReplayBuffer(10, OBS, ACTIONS, "cpu", n_steps=3, gamma=GAMMA)
    ends = Step(np.zeros(2), np.zeros(2), 0, 1.0, True, False)
    fill(buffer, [[ends, ends._replace(reward=1e38), ends._replace(reward=-1e38)]])
    assert buffer._get_samples(np.array([0])).rewards.item() == 1.0

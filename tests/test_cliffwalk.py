"""Blind Cliffwalk (PER section 3.1): the task on which prioritized replay must learn from far fewer updates."""

import itertools

import numpy as np
import pytest
from gymnasium import spaces

from sb3_rainbow import PrioritizedNStepReplayBuffer

BATCH = 32


def all_episodes(n_states: int, rng: np.random.Generator) -> list[tuple[int, int, float, bool]]:
    """
    Every sequence of actions until termination, in random order: action 1 goes on, 0 falls off. Only all right is rewarded.
    """
    sequences = list(itertools.product((0, 1), repeat=n_states))
    rng.shuffle(sequences)
    steps = []
    for actions in sequences:
        for state, action in enumerate(actions):
            last = state == n_states - 1
            steps.append((state, action, float(last and action == 1), bool(last or action == 0)))
            if action == 0:
                break
    return steps


def updates_until_learned(n_states: int, alpha: float, seed: int) -> int:
    """Q-learning updates until the mean square error of a table falls below 1e-3."""
    rng = np.random.default_rng(seed)
    gamma = 1 - 1 / n_states
    steps = all_episodes(n_states, rng)
    buffer = PrioritizedNStepReplayBuffer(
        len(steps), spaces.Discrete(n_states + 1), spaces.Discrete(2), "cpu", n_steps=1, gamma=gamma, alpha=alpha, seed=seed
    )
    for state, action, reward, done in steps:
        buffer.add(np.array([state]), np.array([state + 1]), np.array([action]), np.array([reward]), np.array([done]), [{}])
    truth = np.zeros((n_states + 1, 2))
    truth[:-1, 1] = gamma ** np.arange(n_states - 1, -1, -1)
    table = rng.normal(0, 0.1, truth.shape)
    table[-1] = 0
    for n_updates in itertools.count(step=BATCH):
        if ((table - truth)[:-1] ** 2).mean() < 1e-3:
            return n_updates
        batch = buffer.sample(BATCH, beta=0.5)
        states, actions = batch.observations.numpy()[:, 0], batch.actions.numpy()[:, 0]
        targets = batch.rewards.numpy()[:, 0] + gamma * (1 - batch.dones.numpy()[:, 0]) * table[states + 1].max(1)
        errors = targets - table[states, actions]
        for state, action, error, weight in zip(states, actions, errors, batch.weights.numpy()[:, 0], strict=True):
            table[state, action] += 0.25 * weight * error
        buffer.update_priorities(batch.leaf_indices, np.abs(errors) + 1e-6)


def median_updates(n_states: int, alpha: float, n_seeds: int) -> float:
    return float(np.median([updates_until_learned(n_states, alpha, seed) for seed in range(n_seeds)]))


@pytest.mark.parametrize(("n_states", "n_seeds"), [(12, 5), pytest.param(13, 10, marks=pytest.mark.slow)])
def test_prioritized_replay_needs_a_third_of_the_updates(n_states, n_seeds):
    prioritized, uniform = (median_updates(n_states, alpha, n_seeds) for alpha in (0.8, 0.0))
    print(f"{n_states} states: {prioritized:.0f} updates prioritized, {uniform:.0f} uniform, {prioritized / uniform:.3f}")
    assert prioritized <= uniform / 3

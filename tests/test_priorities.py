"""Priority sums and draws, against plain cumulative sums and statistics."""

import math

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sb3_rainbow.replay.arrays import to_array, to_numpy
from sb3_rainbow.replay.priorities import PrioritySampler

CPU = th.device("cpu")
PRIORITIES = st.just(0.0) | st.floats(1e-9, 1e6)


def set_priorities(sampler: PrioritySampler, priorities: list[float]) -> None:
    leaves = np.arange(len(priorities))
    sampler.append(0, len(priorities))
    sampler.update(to_array(leaves, CPU), to_array(np.array(priorities), CPU))


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_any_stream_of_operations_leaves_what_a_plain_list_would(backend, data):
    size = data.draw(st.sampled_from([1, 2, 63, 64, 65, 331, 4099]), "size")
    alpha = data.draw(st.sampled_from([0.0, 0.4, 0.5, 1.0]), "alpha")
    sampler = PrioritySampler(size, alpha, "memory", seed=0)
    leaves, largest = np.zeros(size), 1.0
    for _ in range(data.draw(st.integers(1, 8), "operations")):
        if data.draw(st.booleans(), "append"):
            start = data.draw(st.integers(0, size - 1))
            stop = data.draw(st.integers(start + 1, min(size, start + 70)))
            sampler.append(start, stop)
            leaves[start:stop] = largest**alpha
        else:
            indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=40), "leaves")
            values = data.draw(st.lists(PRIORITIES, min_size=len(indices), max_size=len(indices)), "priorities")
            sampler.update(to_array(np.array(indices), CPU), to_array(np.array(values), CPU))
            for index, value in zip(indices, values, strict=True):  # the last of a duplicate wins
                leaves[index] = value**alpha if value > 0 else 0.0
            largest = max(largest, *values)
        assert sampler.max_priority == largest
        np.testing.assert_allclose(to_numpy(sampler.leaves), leaves, rtol=1e-12)
        assert math.isclose(sampler.total, leaves.sum(), rel_tol=1e-12)
        if leaves.sum() > 0:
            drawn = to_numpy(sampler.sample(17))
            assert (leaves[drawn] > 0).all()
            weights = to_numpy(sampler.weights(to_array(drawn, CPU), 0.7))
            np.testing.assert_allclose(weights, (leaves[drawn] / leaves[leaves > 0].min()) ** -0.7, rtol=1e-6)
        else:
            with pytest.raises(ValueError, match="all priorities are 0"):
                sampler.sample(17)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_draws_follow_the_priorities(backend, alpha):
    priorities = np.array([1.0, 0.0, 5.0, 0.1, 3.0, 0.0, 2.0] * 30)
    sampler = PrioritySampler(len(priorities), alpha, seed=1)
    set_priorities(sampler, priorities.tolist())
    counts = np.zeros(len(priorities))
    for _ in range(2000):
        counts += np.bincount(to_numpy(sampler.sample(32)), minlength=len(priorities))
    probabilities = np.where(priorities > 0, priorities**alpha, 0)
    probabilities /= probabilities.sum()
    drawable = probabilities > 0
    assert counts[~drawable].sum() == 0
    # 149 degrees of freedom: mean 149, standard deviation 17. Stratified draws stay below that of independent ones
    assert chi_square(counts[drawable], 64000 * probabilities[drawable]) < 149 + 4 * 17


def test_a_draw_is_stratified(backend):
    sampler = PrioritySampler(1000, 1.0, seed=2)
    set_priorities(sampler, [1.0] * 1000)
    for _ in range(20):
        assert (to_numpy(sampler.sample(10)) // 100).tolist() == list(range(10))


@pytest.mark.parametrize("weight_norm", ["batch", "memory"])
def test_weights_make_the_mean_that_of_uniform_draws(backend, weight_norm):
    rng = np.random.default_rng(3)
    priorities, values = rng.uniform(0.1, 4, 300), rng.normal(2, 1, 300)
    sampler = PrioritySampler(300, 0.7, weight_norm, seed=4)
    set_priorities(sampler, priorities.tolist())
    probabilities = priorities**0.7 / (priorities**0.7).sum()
    leaves = to_array(np.arange(300), CPU)
    # beta = 1: sum of P w f is the mean of f, but for one factor
    weights = to_numpy(sampler.weights(leaves, 1.0)).astype(np.float64)
    factor = (probabilities * weights).sum()
    assert math.isclose((probabilities * weights * values).sum() / factor, values.mean(), rel_tol=1e-6)
    assert math.isclose(weights.max(), 1, rel_tol=1e-6)
    # and on average over draws
    drawn = np.concatenate([to_numpy(sampler.sample(30)) for _ in range(1000)])
    drawn_weights = to_numpy(sampler.weights(to_array(drawn, CPU), 1.0)).astype(np.float64)
    assert abs((drawn_weights * values[drawn]).sum() / drawn_weights.sum() - values.mean()) < 0.02


def test_weights_are_those_of_the_paper(backend):
    sampler = PrioritySampler(4, 0.5, seed=5)
    set_priorities(sampler, [1.0, 4.0, 9.0, 16.0])
    # P = .1 .2 .3 .4; (4 P) ** -0.5 over the largest
    raw = (4 * np.array([0.1, 0.2, 0.3, 0.4])) ** -0.5
    np.testing.assert_allclose(to_numpy(sampler.weights(to_array(np.arange(4), CPU), 0.5)), raw / raw[0], rtol=1e-6)
    np.testing.assert_allclose(
        to_numpy(sampler.weights(to_array(np.array([1, 3]), CPU), 0.5)), raw[[1, 3]] / raw[1], rtol=1e-6
    )


def test_new_leaves_enter_at_the_largest_priority_seen(backend):
    sampler = PrioritySampler(10, 0.5, seed=6)
    sampler.append(0, 2)
    sampler.update(to_array(np.array([0, 1]), CPU), to_array(np.array([9.0, 0.5]), CPU))
    sampler.update(to_array(np.array([0]), CPU), to_array(np.array([0.1]), CPU))  # the largest is gone, but was seen
    sampler.append(2, 3)
    np.testing.assert_allclose(to_numpy(sampler.leaves)[:4], [0.1**0.5, 0.5**0.5, 3.0, 0.0])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, -1e-9])
def test_a_wrong_priority_is_refused_and_changes_nothing(backend, wrong):
    sampler = PrioritySampler(4, 0.5, seed=7)
    set_priorities(sampler, [1.0, 2.0, 3.0, 4.0])
    before = to_numpy(sampler.leaves).copy()
    with pytest.raises(ValueError, match=f"priorities={wrong}"):
        sampler.update(to_array(np.array([0, 1]), CPU), to_array(np.array([0.5, wrong]), CPU))
    assert (to_numpy(sampler.leaves) == before).all()
    assert sampler.max_priority == 4.0


def test_sums_do_not_drift():
    rng = np.random.default_rng(8)
    sampler = PrioritySampler(10_000, 0.6, seed=9)
    sampler.append(0, 10_000)
    for _ in range(2000):  # 10 ** 7 updates
        sampler.update(rng.integers(0, 10_000, 5000), 10 ** rng.uniform(-8, 8, 5000))
    fresh = PrioritySampler(10_000, 0.6)
    fresh.load_state(sampler.state())
    assert (sampler._sums == fresh._sums).all()
    assert sampler.total == fresh.total


def test_a_draw_beyond_the_rounded_end_of_a_block_is_held_back(monkeypatch):
    """After 1e9, a block of 1e-7 ends at the next float64, which is 1.2e-7 on: a draw can lie between the two ends."""
    sampler = PrioritySampler(192, 1.0)
    set_priorities(sampler, [1e9] + [0.0] * 64 + [1e-7] + [0.0] * 62 + [1.0] + [0.0] * 63)
    drawn = set()
    for steps in range(-40, 40):
        draw = 1 - 1e-15 - (1e9 + 1.2e-7) / (1e9 + 1) + steps * 2**-53
        monkeypatch.setattr(sampler._uniform, "draw", lambda n, draw=draw: np.full(n, draw))
        drawn |= set(sampler.sample(1).tolist())
    assert drawn == {0, 65, 128}, "64 is the first of the small block's zeros"


def test_leaves_appended_one_after_the_other_all_count(backend):
    sampler = PrioritySampler(300, 1.0, seed=0)
    for start, stop in ((0, 2), (2, 5), (5, 100), (200, 210), (210, 211)):
        sampler.append(start, stop)
    assert sampler.total == 111
    assert np.flatnonzero(to_numpy(sampler.leaves)).tolist() == [*range(100), *range(200, 211)]


def test_the_largest_draw_falls_on_the_last_positive_leaf(monkeypatch):
    sampler = PrioritySampler(200, 1.0, seed=0)
    set_priorities(sampler, [0.1] * 130 + [0.0] * 70)
    for extreme, leaf in ((0.0, 129), (np.nextafter(1, 0), 0)):  # a draw is taken from the end of its range
        monkeypatch.setattr(sampler._uniform, "draw", lambda n, extreme=extreme: np.full(n, extreme))
        assert sampler.sample(1).tolist() == [leaf]


def test_a_saved_sampler_goes_on_with_the_same_draws(backend):
    sampler = PrioritySampler(500, 0.5, seed=11)
    set_priorities(sampler, list(np.random.default_rng(0).uniform(0, 1, 500)))
    sampler.sample(10)
    copy = PrioritySampler(500, 0.5, seed=99)
    copy.load_state(sampler.state())
    for _ in range(5):
        assert to_numpy(sampler.sample(32)).tolist() == to_numpy(copy.sample(32)).tolist()


def test_seeds_decide_the_draws_and_the_global_generators_do_not_matter():
    draws = []
    for _ in range(2):
        sampler = PrioritySampler(500, 0.5, seed=12)
        set_priorities(sampler, [1.0] * 500)
        state = np.random.get_state()[1].tolist(), th.get_rng_state().tolist()
        draws.append(sampler.sample(32).tolist())
        assert state == (np.random.get_state()[1].tolist(), th.get_rng_state().tolist())
    assert draws[0] == draws[1]
    other = PrioritySampler(500, 0.5, seed=13)
    set_priorities(other, [1.0] * 500)
    assert other.sample(32).tolist() != draws[0]

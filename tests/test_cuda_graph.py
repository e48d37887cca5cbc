"""Updates on a GPU: nothing is read back from it, they are those of the CPU, and they are captured when they should be."""

from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import small_models
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_rainbow import RainbowDQN
from sb3_rainbow.checks import check_cuda_graph
from sb3_rainbow.cuda_graph import WARM_UP, CudaGraph
from sb3_rainbow.replay import arrays

VARIANTS = [
    {},
    {"n_atoms": 51},
    {"n_atoms": 20, "v_min": None, "v_max": None},
    {"amp": "bf16"},
    {"noisy": "independent", "double_q": False, "dueling": False},
    {"prioritized": False},
    {"replay_buffer_kwargs": {"weight_norm": "memory"}},
    {"policy": "CnnPolicy"},
]


@pytest.fixture(autouse=True)
def torch_replay(monkeypatch):
    """The replay in torch's tensors, as on a GPU."""
    monkeypatch.setattr(arrays, "on_numpy", lambda device: False)


def filled(policy: str = "MlpPolicy", **arguments) -> RainbowDQN:
    model = small_models.filled(policy, learning_rate=rate, **arguments)
    model._current_progress_remaining = 0.5
    return model


def rate(progress: float) -> float:
    return progress * 2**-10  # what float32 can tell, as a GPU gets it so


class CpuGraph:
    """Runs the function each time, and remembers what it was given."""

    def __init__(self):
        self.keys, self.numbers = [], []

    def run(self, function, key, generator, **numbers):
        self.keys.append((*key, generator))
        self.numbers.append(numbers)
        return function(**{name: th.full((), number, dtype=th.float64) for name, number in numbers.items()})


def with_graph(model: RainbowDQN) -> RainbowDQN:
    """As on a GPU, but for the capture."""
    model._graph = CpuGraph()
    model._uses_graph = lambda: True
    return model


class NoValuesFromTheHost(TorchDispatchMode):
    """Refuses to make tensors from Python's numbers: on a GPU they would be copied there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "lift_fresh" not in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_an_update_on_the_device_waits_for_nothing(variant):
    model = with_graph(filled(**variant))
    model.train(1, 32)  # tables that stay are made
    model.replay_buffer.prepare()
    beta, learning_rate = th.full((2,), 0.5, dtype=th.float64)
    # Tensors without values: whatever would look at one raises
    with FakeTensorMode(allow_non_fake_inputs=True):
        model._update_on_device(32, beta, learning_rate)
        with pytest.raises(DataDependentOutputException):
            model._update(32)
    with NoValuesFromTheHost():
        model._update_on_device(32, beta, learning_rate)
        with pytest.raises(AssertionError):
            th.tensor(1.0)


def state_of(model: RainbowDQN) -> list[th.Tensor]:
    optimizer = [x for state in model.policy.optimizer.state.values() for x in state.values()]
    leaves, largest = model.replay_buffer._priorities.leaves, th.tensor(model.replay_buffer.max_priority)
    return [x.detach().clone() for x in (*model.policy.state_dict().values(), *optimizer, leaves, largest)]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e3])
def test_it_is_the_update_of_the_cpu(variant, max_grad_norm):
    results = []
    for model in (filled(max_grad_norm=max_grad_norm, **variant), with_graph(filled(max_grad_norm=max_grad_norm, **variant))):
        th.manual_seed(3)
        losses = []
        for progress in (0.75, 0.5, 0.25):
            model._current_progress_remaining = progress
            model.train(2, 32)
            losses.append(th.tensor(model.logger.name_to_value["train/loss"]))
        results.append(losses + state_of(model))
    assert len(model._graph.keys) == 6
    for device, host in zip(*results, strict=True):
        assert th.equal(device, host)


@pytest.mark.parametrize("bad", [{"rewards": np.inf}, {"parameter": np.nan}], ids=str)
@pytest.mark.parametrize("n_atoms", [1, 51])
def test_numbers_that_are_not_finite_change_nothing_and_are_named(bad, n_atoms):
    model = with_graph(filled(n_atoms=n_atoms))
    model.train(1, 32)  # the optimiser has a state
    if "rewards" in bad:
        model.replay_buffer._transitions.rewards[:] = np.inf
    else:
        with th.no_grad():
            next(model.q_net.parameters()).fill_(np.nan)
    before = state_of(model)
    with pytest.raises(ValueError, match="contain (inf|nan): training stopped"):
        model.train(1, 32)
    for now, then in zip(state_of(model), before, strict=True):
        th.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)


def test_the_graph_is_told_what_changes_and_captured_anew_when_tensors_or_settings_do():
    model = with_graph(filled("CnnPolicy"))
    model.train(2, 32)
    assert model._graph.numbers == [{"beta": pytest.approx(0.7), "learning_rate": 2**-11}] * 2
    assert model.policy.optimizer.param_groups[0]["lr"] == 2**-11, "the rate is still a number"
    model.train(2, 32)  # by now the optimiser has its state
    assert model._graph.keys[1] == model._graph.keys[2] == model._graph.keys[3]
    buffer, optimizer = model.replay_buffer, model.policy.optimizer
    frames = buffer._observations._stores[""]
    held = []  # memory that may not be given again

    def change(action):
        held.append([*buffer.arrays, *optimizer.state.values()])
        action()
        model.train(1, 16)
        assert model._graph.keys[-1] != model._graph.keys[-2]

    change(lambda: None)  # another size of the batch
    change(lambda: frames._reserve(2 * len(frames._frames)))
    change(lambda: buffer.load_state(buffer.state()))
    change(lambda: optimizer.load_state_dict(deepcopy(optimizer.state_dict())))
    change(lambda: optimizer.state.clear())
    change(lambda: optimizer.param_groups[0].update(betas=(0.5, 0.9)))
    target = model.q_net_target
    change(lambda: (setattr(model.policy, "q_net_target", deepcopy(target)), model._create_aliases()))
    change(lambda: setattr(buffer, "n_steps", 5))
    change(lambda: (setattr(buffer, "gamma", 0.5), buffer.sample(16), setattr(buffer, "gamma", 0.99)))
    change(lambda: setattr(model, "max_grad_norm", 1.0))
    model.train(1, 16)
    assert model._graph.keys[-1] == model._graph.keys[-2]


def test_with_normalisation_and_on_the_cpu_there_is_no_graph():
    for env in (VecNormalize(make_vec_env("CartPole-v1")), "CartPole-v1"):
        model = RainbowDQN("MlpPolicy", env, learning_starts=20, buffer_size=100, cuda_graph=True)
        model.device = th.device("cuda" if isinstance(env, VecNormalize) else "cpu")
        assert not model._uses_graph()


def test_on_a_gpu_there_is_a_graph(monkeypatch):
    monkeypatch.setattr("sb3_rainbow.checks.check_cuda_graph", lambda *_: None)
    model = RainbowDQN("MlpPolicy", "CartPole-v1", buffer_size=100, cuda_graph=True)
    model.device = th.device("cuda")
    assert model._uses_graph()


def test_no_update_is_no_update():
    model = filled()
    before = state_of(model)
    with pytest.warns(RuntimeWarning):  # NumPy's, of the mean of nothing
        model.train(0, 32)
    assert all(th.equal(now, then) for now, then in zip(state_of(model), before, strict=True))


class FakeCuda:
    """Stands in for ``torch.cuda``: a captured function runs once for the capture, and ``replay`` counts."""

    def __init__(self, monkeypatch):
        self.log: list[str] = []
        fake = self

        class Graph:
            def register_generator_state(self, generator):
                fake.log.append(f"generator {generator}")

            def replay(self):
                fake.log.append("replay")

        class Stream:
            def __init__(self, device=None):
                pass

            def wait_stream(self, other):
                fake.log.append("wait")

        @contextmanager
        def capture(graph, stream):
            fake.log.append("capture")
            yield

        @contextmanager
        def in_stream(stream):
            yield

        fakes = {"CUDAGraph": Graph, "Stream": Stream, "graph": capture, "stream": in_stream, "device": in_stream}
        for name, value in fakes.items():
            monkeypatch.setattr(th.cuda, name, value)
        monkeypatch.setattr(th.cuda, "current_stream", Stream)


def test_a_function_is_captured_after_it_was_warmed_up_and_anew_for_another_key(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    graph = CudaGraph(th.device("cpu"))
    calls: list[float] = []

    def function(x):
        calls.append(float(x))
        cuda.log.append("call")
        return x  # the input itself, to see what replays would see

    warm_up = ["wait", "call", "wait"] * WARM_UP
    first = ["generator g", "capture", "call", "replay"]
    results = [graph.run(function, ("a",), "g", x=float(i)) for i in range(WARM_UP + 2)]
    assert cuda.log == [*warm_up, *first, "replay"]
    assert calls == list(range(WARM_UP + 1))
    assert float(results[-1]) == WARM_UP + 1, "the last number did not reach the captured kernels"
    for key, generator in ((("b",), "g"), (("b",), "h")):
        cuda.log.clear()
        for _ in range(WARM_UP + 1):
            graph.run(function, key, generator, x=0.0)
        assert cuda.log == [*warm_up, f"generator {generator}", *first[1:]]
    cuda.log.clear()
    graph.forget()
    graph.run(function, ("b",), "h", x=0.0)
    assert cuda.log == ["wait", "call", "wait"]


def test_a_failed_capture_is_not_replayed(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    graph = CudaGraph(th.device("cpu"))

    def function(x):
        if cuda.log[-1] == "capture":
            raise RuntimeError("operation not permitted")
        return x

    for _ in range(WARM_UP):
        graph.run(function, (), "g", x=0.0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="train with cuda_graph=False"):
            graph.run(function, (), "g", x=0.0)
    assert "replay" not in cuda.log


def test_on_the_cpu_it_has_no_effect_and_is_saved(tmp_path):
    model = RainbowDQN("MlpPolicy", "CartPole-v1", cuda_graph=True, learning_starts=20, buffer_size=100).learn(30)
    assert model._graph is None
    model.save(tmp_path / "model")
    assert RainbowDQN.load(tmp_path / "model").cuda_graph


def test_what_cannot_be_captured_is_refused():
    model = filled()
    optimizer = model.policy.optimizer
    check_cuda_graph(model.replay_buffer, optimizer)  # as both are on the same device
    plain = RainbowDQN("MlpPolicy", "CartPole-v1", n_steps=1, prioritized=False, buffer_size=10)
    on_numpy = SimpleNamespace(arrays=[np.zeros(3)])
    elsewhere = SimpleNamespace(arrays=[th.zeros(3, device="meta")])
    optimizer.param_groups[0]["params"][0] = th.zeros(3, device="meta")
    check_cuda_graph(elsewhere, optimizer)
    for buffer in (plain.replay_buffer, on_numpy):
        with pytest.raises(ValueError, match=r"on cpu: must be a PrioritizedNStepReplayBuffer on meta .storage_device"):
            check_cuda_graph(buffer, optimizer)
    for optimizer_class, settings in ((th.optim.RMSprop, {}), (th.optim.Adam, {}), (th.optim.SGD, {"fused": True})):
        with pytest.raises(ValueError, match=f"{optimizer_class.__name__}: must be Adam or AdamW, made with fused=True"):
            check_cuda_graph(model.replay_buffer, optimizer_class([th.zeros(3)], 0.1, **settings))


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_on_a_gpu_the_captured_updates_are_the_others(variant, monkeypatch):
    monkeypatch.undo()
    results = []
    for cuda_graph in (False, True):
        rate = {"learning_rate": lambda remaining: 1e-3 * remaining}
        model = filled(device="cuda", storage_device="cuda", cuda_graph=cuda_graph, **(rate | variant))
        optimizer = model.policy.optimizer
        th.manual_seed(3)
        for round_ in range(4):
            if round_ == 1:
                optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
            elif round_ == 2:
                model.replay_buffer.load_state(model.replay_buffer.state())
            elif round_ == 3:
                model.replay_buffer.n_steps = 2
            graphs = []
            for step in range(2):  # the captured one takes another rate and another beta
                model._current_progress_remaining = 0.8 - 0.2 * round_ - 0.1 * step
                model.train(WARM_UP + 5, 32)
                if cuda_graph:
                    graphs.append(model._graph._graph)
            assert all(graph is not None and graph is graphs[0] for graph in graphs)
        results.append(state_of(model))
    for plain, captured in zip(*results, strict=True):
        th.testing.assert_close(plain, captured, rtol=1e-2, atol=1e-3)

"""Updates as CUDA graphs: on a GPU the hundreds of small kernels of an update take longer to start than to run."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch as th

Result = TypeVar("Result")

#: Calls before the capture: libraries allocate and choose their kernels in the first ones
WARM_UP = 3


class CudaGraph:
    """
    Runs a function on a GPU. After ``WARM_UP`` calls it captures the kernels that the function starts, and from then on starts
    them all at once. The function must read nothing back from the GPU.

    :param device: the GPU
    """

    def __init__(self, device: th.device) -> None:
        self._device = device
        # Captures need a stream of their own; libraries keep memory and choices for each stream, so that it is warmed up too
        self._stream = th.cuda.Stream(device)
        self._inputs: dict[str, th.Tensor] = {}
        self.forget()

    def forget(self) -> None:
        """Capture anew."""
        self._key: tuple[Any, ...] | None = None
        self._graph: th.cuda.CUDAGraph | None = None
        self._n_calls = 0
        self._result: Any = None

    def run(self, function: Callable[..., Result], key: tuple[Any, ...], generator: th.Generator, **numbers: float) -> Result:
        """
        :param function: takes ``numbers`` as float64 scalars on the GPU
        :param key: what the kernels depend on, the places of tensors among it: if it changes, they are captured anew
        :param generator: from which the function draws, beside torch's global one
        :param numbers: what may differ from call to call
        :return: what the function returns. Its tensors hold these values until the next call
        :raises RuntimeError: if the function cannot be captured
        """
        if (*key, generator) != self._key:
            self.forget()
            self._key = *key, generator
        with th.cuda.device(self._device):
            for name, number in numbers.items():
                if name not in self._inputs:
                    self._inputs[name] = th.empty((), dtype=th.float64, device=self._device)
                self._inputs[name].fill_(number)
            if self._graph is None:
                if self._n_calls < WARM_UP:
                    return self._warm_up(function)
                self._graph = self._capture(function, generator)
            self._graph.replay()
        return self._result

    def _warm_up(self, function: Callable[..., Result]) -> Result:
        self._n_calls += 1
        current = th.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with th.cuda.stream(self._stream):
                return function(**self._inputs)
        finally:
            current.wait_stream(self._stream)

    def _capture(self, function: Callable[..., Any], generator: th.Generator) -> th.cuda.CUDAGraph:
        graph = th.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        try:
            with th.cuda.graph(graph, stream=self._stream):  # nothing runs yet
                self._result = function(**self._inputs)
        except RuntimeError as error:
            raise RuntimeError("cuda_graph=True: the update could not be captured; train with cuda_graph=False") from error
        return graph


def places(networks: th.nn.Module, optimizer: th.optim.Optimizer, arrays: list[th.Tensor]) -> tuple[Any, ...]:
    """
    :param networks: all that a captured function uses
    :param optimizer: of their parameters
    :param arrays: other tensors that it uses
    :return: where all of them lie, and the optimiser's settings but the learning rate
    """
    tensors = [*networks.parameters(), *networks.buffers(), *arrays]
    tensors += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, th.Tensor)]
    settings = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    return optimizer, settings, [(tensor.data_ptr(), tensor.shape) for tensor in tensors]


def step_on_device(optimizer: th.optim.Optimizer, learning_rate: th.Tensor, skip: th.Tensor) -> None:
    """
    One step of a fused optimiser, with nothing read back from its device.

    :param optimizer: made with ``fused=True``
    :param learning_rate: scalar; it is rounded to float32, as torch's kernel wants it
    :param skip: scalar bool: leave the parameters and the optimiser as they are
    """
    given = [{name: group[name] for name in ("lr", "capturable")} for group in optimizer.param_groups]
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as torch's own GradScaler tells it
    try:
        for group in optimizer.param_groups:
            group |= {"lr": learning_rate.float(), "capturable": True}
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
        for group, settings in zip(optimizer.param_groups, given, strict=True):
            group |= settings

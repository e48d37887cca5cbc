"""Export of the greedy policy to ONNX: ``python -m sb3_rainbow.export model.zip rainbow.onnx``."""

import argparse
import copy
import warnings
from pathlib import Path

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_rainbow.arguments import WITHOUT_REPLAY
from sb3_rainbow.policies import NoisyQNetwork
from sb3_rainbow.rainbow import RainbowDQN


class _MeanQValues(nn.Module):
    """A Q-network with its mean weights, whose inputs are the entries of an observation."""

    def __init__(self, q_net: NoisyQNetwork, keys: list[str] | None) -> None:
        super().__init__()
        self.q_net = q_net
        self.keys = keys

    def forward(self, *entries: th.Tensor) -> th.Tensor:
        obs = entries[0] if self.keys is None else dict(zip(self.keys, entries, strict=True))
        return self.q_net(obs, deterministic=True)


def export_onnx(model: RainbowDQN, path: str | Path) -> None:
    """
    Write the online network to an ONNX file. It takes observations as they come from the environment, or from ``VecNormalize``
    if there was one (images as uint8, ``[batch, channels, height, width]``; the scaling is inside), in the input
    ``observation``, or for a dict space one input for each key, and gives the output ``q_values``: ``[batch, n_actions]``
    float32. The weights are the means, as for ``predict(deterministic=True)``.

    :param model: a trained model
    :param path: the file; it is overwritten
    :raises ImportError: if the extra ``onnx`` is not installed
    """
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ModuleNotFoundError as error:
        raise ImportError(f'the export needs: pip install "sb3-rainbow[onnx]" ({error})') from error
    space = model.observation_space
    keys = list(space.spaces) if isinstance(space, spaces.Dict) else None
    entries = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
    # Two examples: a batch of one would be taken for a constant
    examples = tuple(th.stack([th.as_tensor(entry.sample()) for _ in range(2)]) for entry in entries)
    batch = th.export.Dim("batch")
    normalize = model.get_vec_normalize_env()
    if normalize is not None and normalize.norm_obs:
        warnings.warn("the file takes observations as VecNormalize gives them, not raw ones", UserWarning, stacklevel=2)
    th.onnx.export(
        _MeanQValues(copy.deepcopy(model.q_net).cpu(), keys).eval(),
        examples,
        str(path),
        input_names=keys or ["observation"],
        output_names=["q_values"],
        dynamic_shapes=(tuple({0: batch} for _ in entries),),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def main(arguments: list[str] | None = None) -> None:
    """
    :param arguments: of the command line; None for those of this process
    """
    parser = argparse.ArgumentParser(
        description="Write a trained RainbowDQN as ONNX: observations in, raw or as VecNormalize gave them; Q-values out."
    )
    parser.add_argument("model", help="file that model.save() wrote")
    parser.add_argument("onnx", help="file to write")
    parsed = parser.parse_args(arguments)
    export_onnx(RainbowDQN.load(parsed.model, device="cpu", **WITHOUT_REPLAY), parsed.onnx)
    print(f"{parsed.onnx}: {Path(parsed.onnx).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

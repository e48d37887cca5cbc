"""Priority sums, and the sampler over them (Schaul et al. 2016, "Prioritized Experience Replay", PER below)."""

import math
import zlib
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch as th

from sb3_rainbow.replay.arrays import Array, Uniform, allocate, namespace, take, to_array, to_numpy


@cache  # for ever: a CUDA graph may go on reading it
def _strata(n: int, xp: ModuleType, device: Any) -> Array:
    """Upper ends of ``n`` equal parts of (0, 1]. The last falls a little short, lest a draw be rounded beyond the total."""
    return xp.arange(1, n + 1, dtype=xp.float64, device=device) / n * (1 - 1e-15)


class PrioritySampler:
    r"""
    Draws leaf ``i`` with probability :math:`P(i) = p_i^\alpha / \sum_k p_k^\alpha` (PER eq. 1).

    The leaves :math:`p_i^\alpha` lie in blocks of about :math:`\sqrt{N} / 4`, but at least 64, with one sum per block. A draw
    searches the block sums and then one block; an update recomputes the sums of the blocks that it touches from their leaves,
    so rounding errors never accumulate. All of it is float64, on ``device``.

    New leaves enter at the largest priority ever seen (PER algorithm 1, line 6). Leaves never written, or written with
    priority 0, are never drawn.

    :param size: number of leaves
    :param alpha: priority exponent, in [0, 1]; 0 draws uniformly
    :param weight_norm: divide the importance weights by the largest weight of the ``"batch"`` or of the whole ``"memory"``
    :param device: where the sums are and the draws are made
    :param seed: seed of the sampler's own generator; ``None`` takes one from torch's global generator
    """

    def __init__(
        self,
        size: int,
        alpha: float = 0.5,
        weight_norm: str = "batch",
        device: th.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        self.size = size
        self.alpha = alpha
        self.weight_norm = weight_norm
        self.device = th.device(device)
        self._uniform = Uniform(self.device, int(th.randint(2**62, ())) if seed is None else seed)
        # Shorter than the square root: reading one block per draw costs more than the prefix sum over all block sums
        self.block_size = max(64, 2 ** round(math.log2(math.sqrt(size) / 4)))
        self._n_blocks = -(-size // self.block_size)
        self.clear()
        self._max_priority = allocate((1,), np.float64, self.device) + 1

    def clear(self) -> None:
        """Forget all leaves."""
        self._blocks = allocate((self._n_blocks, self.block_size), np.float64, self.device)
        self._leaves = self._blocks.reshape(-1)
        self._sums = allocate((self._n_blocks,), np.float64, self.device)
        # Sums of all blocks before each one, and after the last: rebuilt by every draw
        self._before = allocate((self._n_blocks + 1,), np.float64, self.device)
        # Smallest positive leaf of every block, kept only for weight_norm="memory"
        self._minima = allocate((self._n_blocks if self.weight_norm == "memory" else 0,), np.float64, self.device) + math.inf
        # Whether a priority of 0 was ever set: if not, there is no need to look whether all are
        self._has_zeros = False
        # Leaves appended since the last draw or update; they enter the sums together
        self._fresh = (0, 0)

    @property
    def arrays(self) -> list[Array]:
        """All that draws are made from."""
        return [self._blocks, self._sums, self._before, self._minima, self._max_priority]

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(int(array.nbytes) for array in self.arrays)

    @property
    def max_priority(self) -> float:
        """Largest raw priority seen so far; 1 before the first update."""
        return float(self._max_priority[0])

    @property
    def generator(self) -> Any:
        """The sampler's own: NumPy's on the CPU, torch's on CUDA."""
        return self._uniform.generator

    @property
    def leaves(self) -> Array:
        """``[size]`` float64: every leaf's priority, raised to ``alpha``; 0 where nothing was written."""
        self._enter_fresh()
        return self._leaves[: self.size]

    @property
    def total(self) -> float:
        """Sum of all leaves."""
        self._enter_fresh()
        return float(self._sums.sum())

    def seed(self, seed: int) -> None:
        """
        :param seed: restarts the sampler's generator; not negative
        """
        self._uniform.seed(seed)

    def append(self, start: int, stop: int) -> None:
        """
        Give the leaves ``start <= i < stop`` the largest priority seen.

        :param start: first leaf
        :param stop: one past the last leaf
        """
        first, last = self._fresh
        if start != last:
            self._enter_fresh()
            first = start
        self._fresh = (first, stop)

    def update(self, leaf_indices: Array, priorities: Array, check: bool = True) -> None:
        """
        Set priorities. Where a leaf appears twice, the last one wins.

        :param leaf_indices: ``[batch]`` int64
        :param priorities: ``[batch]`` float, raw: not raised to ``alpha``
        :param check: False reads nothing back from the device: priorities must be positive, and those that are not finite
            change nothing
        :raises ValueError: if one is negative or not finite; nothing is changed then
        """
        xp = namespace(self._leaves)
        if check:
            low, high = float(priorities.min()), float(priorities.max())
            if not (low >= 0 and high < math.inf):
                raise ValueError(f"priorities={high if low >= 0 else low}: must be finite and not negative")
            self._has_zeros = self._has_zeros or low == 0
        self._enter_fresh()
        priorities = xp.asarray(priorities, dtype=xp.float64)
        leaves = priorities**self.alpha
        if self._has_zeros:  # 0 ** 0 is 1, but a priority of 0 must stay 0
            leaves = leaves * (priorities > 0)
        if not check:
            finite = xp.isfinite(priorities)
            leaves, priorities = xp.where(finite, leaves, self._leaves[leaf_indices]), xp.where(finite, priorities, 0.0)
        self._max_priority[:] = xp.maximum(self._max_priority, priorities.max())
        if xp is th:
            # CUDA writes duplicates in any order: give all copies of a leaf the value of the last one
            leaf_indices, order = leaf_indices.sort(stable=True)
            leaves = leaves[order][th.searchsorted(leaf_indices, leaf_indices, right=True) - 1]
        self._leaves[leaf_indices] = leaves
        self._refresh(leaf_indices // self.block_size)

    def sample(self, batch_size: int, check: bool = True) -> Array:
        """
        Draw leaves with replacement, stratified as in PER appendix B.2.1: the total is cut into ``batch_size`` equal ranges
        and one leaf is drawn from each.

        :param batch_size: number of draws
        :param check: False, after ``prepare``, reads nothing back from the device
        :return: ``[batch_size]`` int64 leaf indices, ascending; without meaning if none was appended
        :raises ValueError: if all priorities were set to 0
        """
        if check:
            self.prepare()
        xp = namespace(self._leaves)
        through = self._before[1:]
        xp.cumsum(self._sums, 0, out=through)
        total = through[-1]
        draws = self._uniform.draw(batch_size)
        draws *= -1 / batch_size
        draws += _strata(batch_size, xp, through.device)
        draws *= total
        # Draws are positive: the first prefix sum not below one ends a block, or a leaf, that is positive itself
        blocks = xp.searchsorted(through, draws)
        within = take(self._blocks, blocks).cumsum(1)
        # A block's sum is rounded in another order: hold the draw back at the end of the block
        draws = xp.minimum(draws - take(self._before, blocks), within[:, -1])
        return (within < draws[:, None]).view(xp.uint8).argmin(1) + blocks * self.block_size

    def prepare(self) -> None:
        """
        What a sample needs of the host.

        :raises ValueError: if all priorities were set to 0
        """
        self._enter_fresh()
        if self._has_zeros and self.total <= 0:
            raise ValueError("all priorities are 0: nothing can be drawn")

    def weights(self, leaf_indices: Array, beta: float | th.Tensor) -> Array:
        r"""
        Importance-sampling weights :math:`w_i = (N P(i))^{-\beta} / \max_j w_j` (PER section 3.4). ``N`` and the total
        cancel against the largest weight, which belongs to the smallest positive leaf.

        :param leaf_indices: ``[batch]`` int64, drawn leaves
        :param beta: correction exponent, in [0, 1]; 1 corrects fully
        :return: ``[batch]`` float32, in (0, 1]
        """
        xp = namespace(self._leaves)
        leaves = take(self._leaves, leaf_indices)
        smallest = (self._minima if self.weight_norm == "memory" else leaves).min()
        return xp.asarray((leaves / smallest) ** -beta, dtype=xp.float32)

    def state(self) -> dict[str, Any]:
        """:return: everything that the next draws depend on; arrays are NumPy's"""
        return {
            "leaves": to_numpy(self.leaves),
            "max_priority": self.max_priority,
            "has_zeros": self._has_zeros,
            "generator": (self.device.type, self._uniform.state()),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """
        Continue from a saved state: the next draws are those that the saved sampler would have made, if it was on a device of
        the same type. Else its generator starts anew, from what the saved one was.

        :param state: what ``state()`` returned, for the same ``size``
        """
        self._fresh = (0, 0)
        self._leaves[: self.size] = to_array(state["leaves"], self.device)
        self._max_priority[:], self._has_zeros = state["max_priority"], state["has_zeros"]
        device_type, generator = state["generator"]
        if device_type == self.device.type:
            self._uniform.load_state(generator)
        else:
            self._uniform.seed(zlib.crc32(repr(generator).encode()))
        self._refresh(slice(None))

    def _enter_fresh(self) -> None:
        """Write the appended leaves and the sums above them, as the next draw or update would."""
        start, stop = self._fresh
        if start < stop:
            self._fresh = (stop, stop)
            self._leaves[start:stop] = self._max_priority**self.alpha
            self._refresh(slice(start // self.block_size, (stop - 1) // self.block_size + 1))

    def _refresh(self, blocks: Array | slice) -> None:
        """Recompute the sums of some blocks."""
        rows = self._blocks[blocks]
        self._sums[blocks] = rows.sum(1)
        if self.weight_norm == "memory":
            xp = namespace(self._leaves)
            self._minima[blocks] = xp.amin(xp.where(rows > 0, rows, math.inf), 1)

"""Images and stacks of images, each frame stored once."""

import math
import uuid
from array import array
from typing import Any

import numpy as np
import torch as th

from sb3_rainbow.replay.arrays import Array, allocate, check_memory, namespace, take, to_array, to_numpy

#: Deepest stack that is looked for
MAX_STACK = 8
#: Most channels of one frame: an axis with more per frame is no stack
MAX_CHANNELS = 16
#: Frames are handed out for saving in parts of about so many bytes, each with a tag that changes when the part does
PART_BYTES = 2**25


class FrameStore:
    r"""
    Images and stacks of images, each frame stored once.

    Every transition keeps ``n_stack + 1`` row numbers: those of the frames of ``obs``, oldest first, then that of the newest
    frame of ``next_obs``, whose other frames are those of ``obs`` moved up by one. Rows are shared only between equal bytes:

    - an ``obs`` equal to the previous ``next_obs`` takes over its rows;
    - in a stack that is new as a whole, a frame of zeros is row 0 and repeated frames have one row: so are stacks padded;
    - every other frame gets a new row. A ``next_obs`` that is not ``obs`` moved up by one is stored whole, and from then on
      every transition keeps ``2 * n_stack`` row numbers.

    So every stack comes out as it went in, whatever the environment does. Rows form a ring in order of arrival, which
    grows when episodes get shorter (each one ends with a frame of its own) and never shrinks.

    :param n_slots: slots of the ring of transitions
    :param n_envs: number of environments
    :param shape: shape of one observation
    :param dtype: dtype of the observations
    :param stack: axis of the stack in ``shape`` (0 or -1) and number of frames, see ``find_stack``
    :param device: where frames and row numbers are stored
    """

    def __init__(
        self, n_slots: int, n_envs: int, shape: tuple[int, ...], dtype: np.dtype, stack: tuple[int, int], device: th.device
    ) -> None:
        self.shape, self.stack_axis, self.n_stack = shape, *stack
        self._n_envs, self._dtype, self._device = n_envs, dtype, device
        self._frame_shape = list(shape)
        self._frame_shape[self.stack_axis] //= self.n_stack
        frame_size = math.prod(self._frame_shape)
        self._zeros = bytes(frame_size * dtype.itemsize)
        # Rows that no episode end needs are never touched, and on a CPU take no memory
        n_rows = count_rows(n_slots, n_envs, self.n_stack, episode_length=16 if device.type == "cpu" else 50)
        self._frames = allocate((n_rows, frame_size), dtype, device)
        self._rows = allocate((n_slots * n_envs, self.n_stack + 1), np.int32, device)
        # Rows 1 .. length are a ring: where the next frame goes, and how many before it stored transitions refer to
        self._length = self._head = self._live = 0
        # Rows taken by each of the last adds. A transition refers to rows of its own add and of the n_stack before it
        self._taken = array("i", bytes(4 * (n_slots + self.n_stack)))
        self._n_adds = 0
        self._part = max(1, PART_BYTES // len(self._zeros))
        # When each part was last written to, in adds; the token tells this history from that of any other store
        self._written = np.zeros(-(-n_rows // self._part), np.int64)
        self._token = uuid.uuid4().hex
        # The latest next_obs of all environments, frame after frame, and its rows; at first the zeros, row 0
        self._last = self._zeros * n_envs * self.n_stack
        self._last_rows = np.zeros((n_envs, self.n_stack), np.int32)

    @property
    def arrays(self) -> list[Array]:
        """All that observations are made from."""
        return [self._frames, self._rows]

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return int(self._frames[: 1 + self._length].nbytes + self._rows.nbytes + self._taken.itemsize * len(self._taken))

    def add(self, slot: int, obs: np.ndarray, next_obs: np.ndarray) -> None:
        """
        Store one transition of every environment.

        :param slot: where in the ring
        :param obs: ``[n_envs, *shape]``
        :param next_obs: ``[n_envs, *shape]``, an episode's last observation where it ended
        """
        stacks, next_stacks = self._to_frames(obs), self._to_frames(next_obs)
        following = next_stacks.tobytes()
        # Comparing bytes is the fastest way. Within all episodes every stack has just one new frame
        size = len(self._zeros) * self.n_stack
        if self._last.startswith(stacks.data) and all(
            following.startswith(stack[1:].data, env * size) for env, stack in enumerate(stacks)
        ):
            rows, last_rows = self._write(next_stacks[:, -1], self._last_rows)
            windows = np.concatenate((last_rows, rows[:, None]), 1)
        else:
            windows = self._place_any(stacks.tobytes(), following)
        self._last = following
        self._last_rows = windows[:, -self.n_stack :]
        width = self._rows.shape[1]
        if windows.shape[1] > width:
            xp = namespace(self._rows)
            self._rows = xp.concatenate((self._rows[:, : self.n_stack], self._rows[:, -self.n_stack :]), 1)
        elif windows.shape[1] < width:
            windows = np.concatenate((windows[:, : self.n_stack], windows[:, -self.n_stack :]), 1)
        leaves = slice(slot * self._n_envs, (slot + 1) * self._n_envs)
        self._rows[leaves] = to_array(windows, self._device)

    def _place_any(self, current: bytes, following: bytes) -> np.ndarray:
        """Row numbers of any transitions: one number after those of ``obs``, or ``n_stack`` if one environment needs them."""
        size = len(self._zeros)
        stack_size = size * self.n_stack
        windows: list[list[int]] = []
        new: list[bytes] = []  # frames to store: until it has its row, the i-th has the number -(i + 1)
        for env, last_rows in enumerate(self._last_rows.tolist()):
            here = slice(env * stack_size, (env + 1) * stack_size)
            stack, next_stack, last = current[here], following[here], self._last[here]
            if stack == last:
                rows = last_rows
            elif stack.startswith(last[size:]):  # a new episode whose stack was not cleared
                rows = last_rows[1:] + self._place(stack[-size:], new)
            else:
                rows = self._place(stack, new)
            moved_up = next_stack.startswith(stack[size:])
            windows.append(rows + self._place(next_stack[-size:] if moved_up else next_stack, new))
        if len(set(map(len, windows))) > 1:
            windows = [window[: self.n_stack] + window[-self.n_stack :] for window in windows]

        # Not read-only, as bytes would be: torch takes no such memory
        frames = np.frombuffer(bytearray().join(new), self._dtype).reshape(len(new), self._frames.shape[1])
        rows_of_new, known = self._write(frames, np.array(windows, np.int32))
        known[known < 0] = rows_of_new[-known[known < 0] - 1]
        return known

    def get(self, leaf_indices: Array, last_leaves: Array) -> tuple[Array, Array]:
        """
        Observations of some leaves, next observations of others (those where the n-step windows end).

        :param leaf_indices: ``[batch]`` int64
        :param last_leaves: ``[batch]`` int64
        :return: two arrays ``[batch, *shape]``
        """
        xp = namespace(self._rows)
        rows = take(self._rows, leaf_indices)[:, : self.n_stack], take(self._rows, last_leaves)[:, -self.n_stack :]
        stacks = take(self._frames, xp.concatenate(rows))
        if self.stack_axis == -1:
            stacks = xp.moveaxis(stacks.reshape(*stacks.shape[:2], *self._frame_shape), 1, -2)
        stacks = stacks.reshape(2, -1, *self.shape)
        return stacks[0], stacks[1]

    def state(self, n_leaves: int) -> dict[str, Any]:
        """
        :param n_leaves: how many leaves have been written
        :return: what they hold and where the ring stands; arrays are NumPy's
        """
        frames = to_numpy(self._frames[: 1 + self._length])
        starts = range(0, len(frames), self._part)
        return {
            "stack": (self.stack_axis, self.n_stack),
            "frames": [frames[start : start + self._part] for start in starts],
            # Parts with equal tags have equal bytes, as long as they are equally long
            "tags": [f"{self._token}-{written}" for written in self._written[: len(starts)]],
            "rows": to_numpy(self._rows[:n_leaves]),
            "ring": (self._length, self._head, self._live, self._n_adds),
            "taken": np.array(self._taken),
            "last": self._last,
            "last_rows": self._last_rows,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """
        :param state: what ``state()`` returned, for the same slots, environments and stack
        """
        self._reserve(state["ring"][0])
        self._length, self._head, self._live, self._n_adds = state["ring"]
        start = 0
        for part in state["frames"]:
            self._frames[start : start + len(part)] = to_array(part, self._device)
            start += len(part)
        n_leaves, width = state["rows"].shape
        if width > self._rows.shape[1]:
            self._rows = allocate((len(self._rows), width), np.int32, self._device)
        self._rows[:n_leaves] = to_array(state["rows"], self._device)
        self._taken = array("i", state["taken"].tobytes())
        self._last, self._last_rows = state["last"], state["last_rows"].copy()

    def _to_frames(self, obs: np.ndarray) -> np.ndarray:
        """Each environment's observation, frame after frame: ``[n_envs, n_stack, frame_size]``."""
        if self.stack_axis == -1:
            obs = np.moveaxis(obs.reshape(*obs.shape[:-1], self.n_stack, -1), -2, 1)
        return np.ascontiguousarray(obs).reshape(self._n_envs, self.n_stack, -1)

    def _place(self, frames: bytes, new: list[bytes]) -> list[int]:
        """Rows of consecutive frames: new ones, but for zeros and repetitions."""
        size = len(self._zeros)
        rows: list[int] = []
        row, previous = 0, self._zeros
        for start in range(0, len(frames), size):
            frame = frames[start : start + size]
            if frame == self._zeros:
                row = 0
            elif frame != previous:
                new.append(frame)
                row = -len(new)
            rows.append(row)
            previous = frame
        return rows

    def _make_room(self, n_new: int) -> tuple[int, int]:
        """
        Make the ring long enough for the next add.

        :param n_new: rows that it takes
        :return: rows from the first number on were moved up by the second
        """
        # The slot's old transition goes, and with it the last reference to what was taken n_stack adds before it
        oldest = self._n_adds % len(self._taken)
        live = self._live - self._taken[oldest]
        missing = live + n_new - self._length
        is_wrapped = self._head < live  # rows in use go on at the start
        # A little more than is missing where rows are moved, as this is not to happen often
        distance = max(missing, self._length // 64) if is_wrapped else missing
        if missing > 0:
            self._reserve(self._length + distance)  # if that will not fit, nothing has changed
        self._live = live
        self._taken[oldest] = n_new
        self._n_adds += 1
        if missing <= 0:
            return 0, 0
        if not is_wrapped:
            self._length += missing
            return 0, 0
        # The oldest rows are the last: move them up, the top first, so that no copy overlaps itself
        first = 1 + self._head - self._live + self._length
        for stop in range(1 + self._length, first, -distance):
            start = max(first, stop - distance)
            self._frames[start + distance : stop + distance] = self._frames[start:stop]
        self._written[first // self._part :] = self._n_adds
        self._rows += distance * (self._rows >= first)
        self._length += distance
        return first, distance

    def _write(self, new: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Write the new frames of one add to the ring's next rows.

        :param new: ``[n, frame_size]``
        :param known: row numbers that are about to be stored
        :return: rows of the new frames, and ``known`` as they are after the ring has moved its rows, if it had to
        """
        first_moved, distance = self._make_room(len(new))
        if distance:
            known = np.where(known < first_moved, known, known + distance)
        stop = self._head + len(new)
        rows = np.arange(1 + self._head, 1 + stop, dtype=np.int32)
        frames = to_array(new, self._device)
        before_wrap = len(new) - max(0, stop - self._length)
        self._frames[1 + self._head : 1 + self._head + before_wrap] = frames[:before_wrap]
        if before_wrap < len(new):
            rows[before_wrap:] -= self._length
            self._written[: 1 + (len(new) - before_wrap) // self._part] = self._n_adds
            self._frames[1 : 1 + len(new) - before_wrap] = frames[before_wrap:]
        self._written[(1 + self._head) // self._part : 1 + (self._head + before_wrap) // self._part] = self._n_adds
        self._live += len(new)
        self._head = stop if stop <= self._length else stop - self._length
        return rows, known

    def _reserve(self, length: int) -> None:
        """Allocate more rows if the ring needs them: many very short episodes, or observations that share nothing."""
        if length >= len(self._frames):
            shape = length * 5 // 4 + 1, self._frames.shape[1]
            check_memory(len(self._rows), math.prod(shape) * self._dtype.itemsize, self._device)
            frames = allocate(shape, self._dtype, self._device)
            frames[: 1 + self._length] = self._frames[: 1 + self._length]
            self._frames = frames
            more = -(-len(frames) // self._part) - len(self._written)
            self._written = np.concatenate((self._written, np.zeros(more, np.int64)))


def count_rows(n_slots: int, n_envs: int, n_stack: int, episode_length: float) -> int:
    """
    :param n_slots: slots of the ring of transitions
    :param n_envs: number of environments
    :param n_stack: frames of a stack
    :param episode_length: mean length of an episode, in steps
    :return: frames that a full ring refers to: one per transition, one more per episode, and the zeros
    """
    return 1 + n_envs * (math.ceil((n_slots + n_stack) * (1 + 1 / episode_length)) + n_stack)


def find_stack(obs: np.ndarray, next_obs: np.ndarray) -> tuple[int, int]:
    """
    Find the axis and the depth of a stack of frames, for which ``next_obs`` is ``obs`` moved up by one frame. Where nothing
    moves, several are: the deepest is taken, but of more channels than ``MAX_STACK`` frames of three, as these are colours.

    :param obs: ``[n, *shape]`` observations, ``shape`` with three or more axes
    :param next_obs: ``[n, *shape]`` what followed them
    :return: axis in ``shape`` (0 or -1), and number of frames; ``(0, 1)`` if they are no stacks
    """
    first, last = obs.shape[1], obs.shape[-1]
    # The channels of an image are its shortest axis. With four axes or more, a new axis was added or the last one made longer
    axes = (0, -1) if obs.ndim > 4 else (-1,) if last < first else (0,)
    for axis in axes:
        older, newer = (np.moveaxis(x, 1 if axis == 0 else -1, 0) for x in (obs, next_obs))
        for n_stack in sorted(range(2, MAX_STACK + 1), key=lambda n: (len(newer) <= MAX_STACK or 3 * n != len(newer), -n)):
            frame, rest = divmod(len(older), n_stack)
            if rest == 0 and frame <= MAX_CHANNELS and np.array_equal(older[frame:], newer[:-frame]):
                return axis, n_stack
    return 0, 1


def likely_depth(shape: tuple[int, ...]) -> int:
    """
    :param shape: of an observation with three or more axes
    :return: depth of the stack that it probably is
    """
    # Three channels may be a stack of three frames, but more often they are colours: the estimate assumes the larger
    if len(shape) == 3 and min(shape[0], shape[-1]) == 3:
        return 1
    still = np.zeros((1, *shape), dtype=bool)
    return find_stack(still, still)[1]

"""Checks of users' arguments: a ValueError that names the argument and the value."""

import re
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

#: Of ``load``, where nothing is going to be stored: no memory for a replay, and HER's would want the environment
WITHOUT_REPLAY: dict[str, Any] = {
    "buffer_size": 1,
    "optimize_memory_usage": False,
    "replay_buffer_class": None,
    "replay_buffer_kwargs": {},
    "storage_device": "cpu",
}


def check_integer(name: str, value: Any, low: int) -> None:
    """
    :param name: name of the argument
    :param value: what was given
    :param low: smallest value allowed
    :raises ValueError: if it is no integer, or too small
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name}={value!r}: must be an integer, at least {low}")


def check_number(name: str, value: Any, low: float, high: float, low_open: bool = False) -> None:
    """
    :param name: name of the argument
    :param value: what was given
    :param low: smallest value allowed
    :param high: largest value allowed
    :param low_open: whether ``low`` itself is not allowed
    :raises ValueError: if it is no number, or outside the range (nan always is)
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (low_open and value == low):
        raise ValueError(f"{name}={value!r}: must be a number in {'(' if low_open else '['}{low:g}, {high:g}]")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """
    :param name: name of the argument
    :param value: what was given
    :param choices: what is allowed
    :raises ValueError: if it is something else
    """
    # `in` alone would take 0 for False and 1 for True
    if not any(value is choice or (value == choice and type(value) is type(choice)) for choice in choices):
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}")


def check_storage_device(value: Any) -> None:
    """
    :param value: what was given for ``storage_device``
    :raises ValueError: if it is none of its kind. Whether there is such a device is not looked at: like ``device``, it is the
        CPU where CUDA is missing
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(value)):
        raise ValueError(f"storage_device={value!r}: must be 'cpu', 'cuda', 'cuda:' and a number, or 'auto'")


def check_seed(value: Any) -> None:
    """
    :param value: what was given for ``seed``
    :raises ValueError: if it is neither None nor an integer from 0 to 2**32 - 1, which is what NumPy's global generator takes
    """
    if value is not None:
        check_integer("seed", value, 0)
        if value >= 2**32:
            raise ValueError(f"seed={value!r}: must be less than {2**32}")

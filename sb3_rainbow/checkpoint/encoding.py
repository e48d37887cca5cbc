"""Python data as JSON and NumPy arrays, without pickle: reading it back never runs code."""

import contextlib
import copy
import importlib
import random
from collections import deque
from enum import Enum
from functools import lru_cache, partial
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch as th
from gymnasium import Space, spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.monitor import ResultsWriter

Json = Any
Arrays = dict[str, np.ndarray]

#: What an object is set up with, or writes to: the same in the object that is restored, so it is neither stored nor compared
SETTINGS = (
    *(type, FunctionType, BuiltinFunctionType, MethodType, partial, type(lru_cache(print)), np.ufunc, type(np.mean)),
    *(BufferedReader, BufferedWriter, FileIO, TextIOWrapper, ModuleType, EnvSpec, ResultsWriter, th.device, th.dtype),
)
#: Bytes of an object that is nothing but its attributes
PLAIN_SIZE = type("Plain", (), {}).__basicsize__
#: Attributes of environments that are written before they are read, or follow from the class
NOT_STATE = {
    "DummyVecEnv": ("buf_infos",),
    "VecEnv": ("reset_infos", "render_mode", "metadata"),
    "VecEnvWrapper": ("class_attributes",),
    "HerReplayBuffer": ("env",),
    "Wrapper": ("_cached_spec", "_metadata"),
}
#: Classes are stored by name, if they are of these kinds and defined in these packages: what others do with arguments from a
#: file is not known
TRUSTED = ("torch.nn.modules", "torch.optim", "stable_baselines3", "sb3_rainbow")
KINDS_OF_CLASSES = (th.nn.Module, th.optim.Optimizer, ReplayBuffer)
#: Spaces that SB3 knows, beside dicts of them, and what makes one
SPACES = {"Box": ("low", "high"), "Discrete": ("n", "start"), "MultiDiscrete": ("nvec",), "MultiBinary": ("n",)}
#: What of a space is state
OF_SPACES = ("_np_random", "spaces")
#: Functions of the progress that are data too. RL Zoo makes one of every learning rate
SCHEDULES = (
    *(f"stable_baselines3.common.utils:{name}" for name in ("ConstantSchedule", "FloatSchedule", "LinearSchedule")),
    "rl_zoo3.utils:SimpleLinearSchedule",
)
#: Random generators, whose methods have state; those of the modules are stored with the model
DRAWING = (random.Random, np.random.Generator, np.random.RandomState)
OF_MODULES = (random._inst, np.random.mtrand._rand)
GENERATORS = {name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")}


class Unencodable(Exception):
    """A value that cannot be stored as data; the text says where it is and of what type."""


def encode(value: Any, arrays: Arrays, path: str = "") -> Json:
    """
    :param value: None, bool, int, float, str, bytes, class, schedule, array, tensor, random generator, or a list, tuple, deque
        or dict
    :param arrays: takes the arrays, under their path
    :param path: where the value is, for names and messages
    :return: what ``decode`` turns back into the value, made of JSON's types
    :raises Unencodable: if the value, or something in it, is of another type
    """
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic | Enum)):
        return value
    if isinstance(value, np.ndarray | np.generic | th.Tensor | bytes):
        if isinstance(value, bytes):
            array = np.frombuffer(value, np.uint8)
        else:
            array = value.detach().cpu().numpy() if isinstance(value, th.Tensor) else np.asarray(value)
        if array.dtype.hasobject:
            items = [encode(item, arrays, f"{path}/{i}") for i, item in enumerate(array.reshape(-1).tolist())]
            return {"!": "objects", "of": items, "shape": list(array.shape)}
        arrays[path] = array
        kinds = {np.ndarray: "array", bytes: "bytes"}
        return {"!": "tensor" if isinstance(value, th.Tensor) else kinds.get(type(value), "scalar"), "of": path}
    if isinstance(value, list | tuple | deque):
        items = [encode(item, arrays, f"{path}/{i}") for i, item in enumerate(value)]
        if type(value) is list:
            return items
        # A named tuple is restored as a plain one
        node = {"!": "deque" if isinstance(value, deque) else "tuple", "of": items}
        return node | ({"maxlen": value.maxlen} if isinstance(value, deque) else {})
    if isinstance(value, dict):
        if all(isinstance(key, str) and key != "!" for key in value):
            return {key: encode(item, arrays, f"{path}/{key}") for key, item in value.items()}
        pairs = [
            [encode(k, arrays, f"{path}/key{i}"), encode(v, arrays, f"{path}/{k}")] for i, (k, v) in enumerate(value.items())
        ]
        return {"!": "dict", "of": pairs}
    if isinstance(value, np.random.Generator):
        return {"!": "generator", "of": encode(value.bit_generator.state, arrays, path)}
    if _is_trusted_class(value):
        return {"!": "class", "of": _name(value)}
    if (name := _name(type(value))) in SCHEDULES:
        return {"!": "schedule", "class": name, "of": encode(vars(value), arrays, path)}
    cls = value if isinstance(value, type) else type(value)
    raise Unencodable(f"{path} is {cls.__module__}.{cls.__qualname__}")


def decode(node: Json, arrays: Arrays) -> Any:
    """
    :param node: what ``encode`` returned
    :param arrays: what it put there
    :return: the value; arrays are not copied
    :raises ValueError: if a node is of no known kind, or names a class that is not one of TRUSTED
    """
    if isinstance(node, list):
        return [decode(item, arrays) for item in node]
    if not isinstance(node, dict):
        return node
    if "!" not in node:
        return {key: decode(item, arrays) for key, item in node.items()}
    kind, content = node["!"], node["of"]
    if kind == "array":
        return arrays[content]
    if kind == "objects":
        objects = np.empty(len(content), dtype=object)
        objects[:] = [decode(item, arrays) for item in content]
        return objects.reshape(node["shape"])
    if kind == "tensor":
        return th.from_numpy(np.array(arrays[content]))
    if kind == "scalar":
        return arrays[content][()]
    if kind == "bytes":
        return arrays[content].tobytes()
    if kind == "tuple":
        return tuple(decode(item, arrays) for item in content)
    if kind == "deque":
        return deque((decode(item, arrays) for item in content), node["maxlen"])
    if kind == "dict":
        return {decode(key, arrays): decode(item, arrays) for key, item in content}
    if kind == "generator":
        state = decode(content, arrays)
        bit_generator = GENERATORS[state["bit_generator"]]()
        bit_generator.state = state
        return np.random.Generator(bit_generator)
    if kind == "class":
        return _find_class(content)
    if kind == "schedule" and node["class"] in SCHEDULES:
        schedule = object.__new__(_import(node["class"]))
        vars(schedule).update(decode(content, arrays))
        return schedule
    raise ValueError(f"a value of the kind {kind!r}: this version of the checkpoint knows none")


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _import(name: str) -> Any:
    """What a name says, without asking whether it may be trusted; None if there is no such thing."""
    module, _, qualname = name.partition(":")
    with contextlib.suppress(ImportError):
        return getattr(importlib.import_module(module), qualname, None)


def _is_trusted(module: str) -> bool:
    return module.startswith(tuple(f"{package}." for package in TRUSTED))


def _is_trusted_class(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, KINDS_OF_CLASSES) and _is_trusted(value.__module__)


def _find_class(name: str) -> type:
    if _is_trusted(name.partition(":")[0]):  # before it is imported
        found = _import(name)
        if _is_trusted_class(found):  # a module may show classes from elsewhere
            return found
    raise ValueError(f"class {name!r}: only networks, optimisers and replay buffers are restored, of {', '.join(TRUSTED)}")


def encode_space(space: Space[Any], arrays: Arrays, path: str) -> Json:
    """
    :param space: one of those that SB3 knows
    :param arrays: takes the arrays
    :param path: what the space is
    :return: for ``decode_space``
    """
    if isinstance(space, spaces.Dict):
        parts = {key: encode_space(part, arrays, f"{path}/{key}") for key, part in space.spaces.items()}
        return {"kind": "Dict", "arguments": parts}
    kind = type(space).__name__
    values = {name: getattr(space, name) for name in SPACES[kind]}
    return {"kind": kind, "arguments": encode(values | ({"dtype": str(space.dtype)} if kind == "Box" else {}), arrays, path)}


def decode_space(node: Json, arrays: Arrays) -> Space[Any]:
    """
    :param node: what ``encode_space`` returned
    :param arrays: what it put there
    :return: the space
    :raises ValueError: if it is of no kind that SB3 knows
    """
    if node["kind"] == "Dict":
        # Pairs stay in their order
        return spaces.Dict([(key, decode_space(part, arrays)) for key, part in node["arguments"].items()])
    if node["kind"] not in SPACES:
        raise ValueError(f"a space of the kind {node['kind']!r}: must be one of Dict, {', '.join(SPACES)}")
    return getattr(spaces, node["kind"])(**decode(node["arguments"], arrays))


def encode_object(target: Any, arrays: Arrays, path: str, memo: dict[int, str] | None = None) -> Json:
    """
    What an object's attributes hold, those of the objects in it as well. Settings (functions, classes, ...) are left out, and
    of a space only its random generator is stored. What several attributes share is stored once, and shared again.

    :param target: any object. One whose class has ``state_dict()`` and ``load_state_dict(state)`` is asked instead
    :param arrays: takes the arrays
    :param path: where the object is
    :param memo: paths of what was met before, by ``id``
    :return: for ``restore_object``
    :raises Unencodable: if an attribute is neither data, nor a setting, nor an object with attributes
    """
    memo = {} if memo is None else memo
    if isinstance(target, Enum):
        return {"!": "enum", "of": target.name}
    if (owner := _generator_behind(target)) is not None:
        return {"!": "method", "name": target.__name__, "of": encode_object(owner, arrays, f"{path}.__self__", memo)}
    if isinstance(target, SETTINGS):
        return {"!": "skip", "name": getattr(target, "__qualname__", "")}
    if target is None or type(target) in (bool, int, float, str, bytes) or isinstance(target, np.generic):
        return encode(target, arrays, path)
    if id(target) in memo:
        return {"!": "ref", "of": memo[id(target)]}
    memo[id(target)] = path
    if isinstance(target, np.ndarray | dict | list | tuple | deque) and _has_more_than_items(target):
        raise Unencodable(f"{path} is {type(target).__module__}.{type(target).__qualname__}")
    if isinstance(target, np.ndarray) and isinstance(target.base, np.ndarray):
        return _encode_view(target, arrays, path, memo)
    if isinstance(target, np.ndarray | th.Tensor | np.random.Generator):
        return encode(target, arrays, path)
    if isinstance(target, random.Random):
        return {"!": "random", "of": encode(target.getstate(), arrays, path)}
    if type(target).__name__ == "ALEInterface":
        return {"!": "ale", "of": encode(target.cloneState(include_rng=True).serialize(), arrays, path)}
    if isinstance(target, dict | list | tuple | deque):
        pairs = list(target.items() if isinstance(target, dict) else enumerate(target))
        keys = (
            [encode(key, arrays, f"{path}/key{i}") for i, (key, _) in enumerate(pairs)] if isinstance(target, dict) else None
        )
        items = [encode_object(item, arrays, f"{path}/{i}", memo) for i, (_, item) in enumerate(pairs)]
        length = {"maxlen": target.maxlen} if isinstance(target, deque) else {}
        return {"!": "items", "class": type(target).__qualname__, "keys": keys, "of": items} | length
    if hasattr(type(target), "state_dict") and hasattr(type(target), "load_state_dict"):
        return {"!": "state_dict", "of": encode(target.state_dict(), arrays, path)}
    if not hasattr(target, "__dict__") or _has_more_than_attributes(type(target)):
        raise Unencodable(f"{path} is {type(target).__module__}.{type(target).__qualname__}")
    if isinstance(target, Space):
        state = {name: value for name, value in vars(target).items() if name in OF_SPACES}
    else:
        skip = {name for base in type(target).__mro__ for name in NOT_STATE.get(base.__name__, ())}
        state = {name: value for name, value in vars(target).items() if name not in skip}
    encoded = {name: encode_object(value, arrays, f"{path}.{name}", memo) for name, value in state.items()}
    return {"!": "object", "class": type(target).__qualname__, "of": encoded}


def read_object(target: Any, path: str) -> tuple[Any, Any]:
    """
    :param target: an object as ``encode_object`` takes it, whose state may fail to be read, by an error of its own too
    :param path: where it is
    :return: its state and its arrays; or None, and why it cannot be read
    """
    arrays: Arrays = {}
    try:
        return encode_object(target, arrays, path), arrays
    except Unencodable as error:
        return None, str(error)
    except Exception as error:  # of a state_dict() of theirs, say
        return None, f"{type(error).__name__}: {error}"


def _has_more_than_attributes(kind: type) -> bool:
    """Slots, or a base class in C."""
    slots = any(isinstance(value, MemberDescriptorType) for base in kind.__mro__ for value in vars(base).values())
    return kind is not SimpleNamespace and (slots or kind.__basicsize__ > PLAIN_SIZE)


def _generator_behind(target: Any) -> Any:
    """Whose method it is; None if it is none, or draws from a generator that all share."""
    owner = target.__self__ if isinstance(target, MethodType | BuiltinFunctionType) else None
    return owner if isinstance(owner, DRAWING) and not any(owner is shared for shared in OF_MODULES) else None


def _has_more_than_items(target: Any) -> bool:
    """A list with attributes, a masked array."""
    # Those of a memmap say where its file is; of torch's state_dict, versions of layers. Some dicts show their items so
    follow = {"_metadata", *(target if isinstance(target, dict) else ())}
    others = getattr(target, "__dict__", {}).keys() - follow
    return isinstance(target, np.ma.MaskedArray) or (bool(others) and not isinstance(target, np.memmap))


def _encode_view(view: np.ndarray, arrays: Arrays, path: str, memo: dict[int, str]) -> Json:
    """A part of another array's memory: what is written to the one is to be seen in the other. Rare kinds are copied."""
    base: Any = view.base
    while isinstance(base.base, np.ndarray):
        base = base.base
    dtype = view.dtype
    if not base.flags.c_contiguous or base.dtype.hasobject or np.dtype(dtype.str) != dtype:
        return encode(view, arrays, path)
    offset = view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    node = {"dtype": dtype.str, "shape": list(view.shape), "strides": list(view.strides), "offset": offset}
    return {"!": "view", "of": encode_object(base, arrays, f"{path}.base", memo)} | node


def restore_object(target: Any, node: Json, arrays: Arrays, path: str, memo: dict[str | int, Any] | None = None) -> Any:
    """
    :param target: an object set up like the one that was stored. Objects are changed in place, data is made anew
    :param node: what ``encode_object`` returned
    :param arrays: what it put there
    :param path: where the object is
    :param memo: what was restored before, by path; where, by the ``id`` of what was changed in place
    :return: what belongs in the target's place
    :raises ValueError: if the target is not like the object that was stored
    """
    memo = {} if memo is None else memo
    kind = node.get("!") if isinstance(node, dict) else None
    if kind == "ref":
        return memo[node["of"]]
    if kind in ("object", "ale", "state_dict") and memo.setdefault(id(target), path) != path:
        if kind != "object":
            raise ValueError(f"{path} is {memo[id(target)]}: in the checkpoint they are two")
        target = copy.copy(target)
    value = target
    if kind == "object":
        _check_class(target, node, path)
        if isinstance(target, SETTINGS) or (isinstance(target, Space) and not set(node["of"]) <= set(OF_SPACES)):
            raise ValueError(f"{path} is {target!r}, a setting: no checkpoint changes it")
        memo[path] = target  # before its attributes, which may refer to it
        for name, child in node["of"].items():
            vars(target)[name] = restore_object(vars(target).get(name), child, arrays, f"{path}.{name}", memo)
    elif kind == "items":
        value = _restore_items(target, node, arrays, path, memo)
    elif kind == "view":
        base = restore_object(None, node["of"], arrays, f"{path}.base", memo)
        if np.dtype(node["dtype"]).hasobject or not isinstance(base, np.ndarray) or base.dtype.hasobject:
            raise ValueError(f"{path}: a view of objects, which are no plain memory")
        value = np.ndarray(node["shape"], node["dtype"], base, node["offset"], node["strides"])
    elif kind == "method":
        if (owner := _generator_behind(target)) is None or target.__name__ != node["name"]:
            raise ValueError(f"{path} is {target!r}: in the checkpoint it is {node['name']} of a random generator")
        value = getattr(restore_object(owner, node["of"], arrays, f"{path}.__self__", memo), target.__name__)
    else:
        value = _restore_leaf(kind, target, node, arrays, path)
    memo[path] = value
    return value


def _restore_leaf(kind: str | None, target: Any, node: Json, arrays: Arrays, path: str) -> Any:
    """What has no objects in it that could be elsewhere, too."""
    if kind == "enum":
        if not isinstance(target, Enum):
            raise ValueError(f"{path} is {target!r}: in the checkpoint it is of an enumeration")
        return type(target)[node["of"]]
    if kind == "skip":
        name = getattr(target, "__qualname__", "")
        if node["name"] != name:
            raise ValueError(f"{path} is {target!r}: in the checkpoint it is {node['name']}")
        return target
    if kind == "random":
        value = random.Random()
        value.setstate(decode(node["of"], arrays))
        return value
    if kind == "ale":
        from ale_py import ALEState

        target.restoreState(ALEState(decode(node["of"], arrays)))
        return target
    if kind == "state_dict":
        target.load_state_dict(copy.deepcopy(decode(node["of"], arrays)))  # not the file's memory
        return target
    if kind == "array":
        return np.array(arrays[node["of"]])  # not the file's memory: it goes on changing
    return decode(node, arrays)


def _restore_items(target: Any, node: Json, arrays: Arrays, path: str, memo: dict[str | int, Any]) -> Any:
    """A list, tuple, deque, dict, or what is derived from them: made anew, but for the objects in it."""
    plain: dict[str, Any] = {"list": list, "tuple": tuple, "dict": dict, "deque": deque}
    kind = plain.get(node["class"], type(target))
    if kind is type(target) or node["class"] not in plain:
        _check_class(target, node, path)
        old = target if isinstance(target, dict) else dict(enumerate(target))
    else:
        old = {}
    keys = range(len(node["of"])) if node["keys"] is None else [decode(key, arrays) for key in node["keys"]]
    value: Any = None
    if issubclass(kind, dict):
        value = copy.copy(target) if type(target) is kind else kind()  # with its default_factory
        value.clear()
    elif issubclass(kind, deque):
        value = kind((), node["maxlen"])
    elif kind is list:
        value = []
    if value is not None:
        memo[path] = value  # before its items, which may refer to it
    items = []
    for i, (key, child) in enumerate(zip(keys, node["of"], strict=True)):
        if isinstance(child, dict) and child.get("!") in ("skip", "object", "ale", "state_dict") and key not in old:
            raise ValueError(f"{path}/{key}: an object that is not there before the environment is used")
        items.append(restore_object(old.get(key), child, arrays, f"{path}/{i}", memo))
    if value is None:
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    if not isinstance(value, dict):
        value.extend(items)
        return value
    for key, item in zip(keys, items, strict=True):  # a Counter's update would count
        value[key] = item
    return value


def _check_class(target: Any, node: Json, path: str) -> None:
    if type(target).__qualname__ != node["class"]:
        raise ValueError(f"{path} is {type(target).__qualname__}: in the checkpoint it is {node['class']}")

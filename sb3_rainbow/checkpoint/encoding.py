"""Python data as JSON and NumPy arrays, without pickle: reading it back never runs code."""

import importlib
from collections import deque
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch as th
from gymnasium import Space, spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import ResultsWriter

Json = Any
Arrays = dict[str, np.ndarray]

#: What an object is set up with, or writes to: the same in the object that is restored, so it is neither stored nor compared
SETTINGS = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, Enum, EnvSpec, ResultsWriter, th.device, th.dtype)
#: Attributes of environments that are written before they are read, or follow from the class
NOT_STATE = {
    "DummyVecEnv": ("buf_infos",),
    "VecEnv": ("reset_infos", "render_mode", "metadata"),
    "VecEnvWrapper": ("class_attributes",),
    "Wrapper": ("_cached_spec", "_metadata"),
}
#: Classes are stored by name, and found again in these packages alone
TRUSTED = ("torch", "stable_baselines3", "sb3_rainbow")
GENERATORS = {name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")}


class Unencodable(Exception):
    """A value that cannot be stored as data; the text says where it is and of what type."""


def encode(value: Any, arrays: Arrays, path: str = "") -> Json:
    """
    :param value: None, bool, int, float, str, bytes, class, array, tensor, random generator, or a list, tuple, deque or dict
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
    if isinstance(value, type) and value.__module__.split(".")[0] in TRUSTED:
        return {"!": "class", "of": f"{value.__module__}:{value.__qualname__}"}
    raise Unencodable(f"{path} is {type(value).__module__}.{type(value).__qualname__}")


def decode(node: Json, arrays: Arrays) -> Any:
    """
    :param node: what ``encode`` returned
    :param arrays: what it put there
    :return: the value; arrays are not copied
    :raises ValueError: if a node is of no known kind, or names a class outside the trusted packages
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
    raise ValueError(f"a value of the kind {kind!r}: this version of the checkpoint knows none")


def _find_class(name: str) -> type:
    module, _, qualname = name.partition(":")
    if module.split(".")[0] in TRUSTED:
        found = getattr(importlib.import_module(module), qualname, None)
        if isinstance(found, type):
            return found
    raise ValueError(f"class {name!r}: only classes of {', '.join(TRUSTED)} are restored by name")


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
    names = {"Box": ("low", "high"), "Discrete": ("n", "start"), "MultiDiscrete": ("nvec",), "MultiBinary": ("n",)}
    kind = type(space).__name__
    values = {name: getattr(space, name) for name in names[kind]}
    return {"kind": kind, "arguments": encode(values | ({"dtype": str(space.dtype)} if kind == "Box" else {}), arrays, path)}


def decode_space(node: Json, arrays: Arrays) -> Space[Any]:
    """
    :param node: what ``encode_space`` returned
    :param arrays: what it put there
    :return: the space
    """
    if node["kind"] == "Dict":
        return spaces.Dict({key: decode_space(part, arrays) for key, part in node["arguments"].items()})
    return getattr(spaces, node["kind"])(**decode(node["arguments"], arrays))


def encode_object(target: Any, arrays: Arrays, path: str, seen: set[int] | None = None) -> Json:
    """
    What an object's attributes hold, those of the objects in it as well. Settings (functions, classes, ...) are left out, and
    of a space only its random generator is stored.

    :param target: any object. One with ``state_dict()`` and ``load_state_dict(state)`` is asked instead
    :param arrays: takes the arrays
    :param path: where the object is
    :param seen: objects met before, which are not stored twice
    :return: for ``restore_object``
    :raises Unencodable: if an attribute is neither data, nor a setting, nor an object with attributes
    """
    seen = set() if seen is None else seen
    if isinstance(target, SETTINGS) or id(target) in seen:
        return {"!": "skip"}
    if type(target).__name__ == "ALEInterface":
        return {"!": "ale", "of": encode(target.cloneState(include_rng=True).serialize(), arrays, path)}
    if not isinstance(target, list | tuple | dict | deque):
        try:
            return encode(target, arrays, path)
        except Unencodable:
            pass
    seen.add(id(target))
    if hasattr(target, "load_state_dict") and hasattr(target, "state_dict"):
        return {"!": "state_dict", "of": encode(target.state_dict(), arrays, path)}
    if isinstance(target, list | tuple | dict | deque):
        try:
            return encode(target, arrays, path)
        except Unencodable:
            # Objects among the items: they are restored in place
            items = list(target.items() if isinstance(target, dict) else enumerate(target))
            if not all(isinstance(key, str | int) for key, _ in items):
                raise
            return {"!": "items", "of": [encode_object(item, arrays, f"{path}/{key}", seen) for key, item in items]}
    if isinstance(target, Space):
        parts = getattr(target, "spaces", ())
        children = list(parts.values() if isinstance(parts, dict) else parts)
        generators = [encode(space._np_random, arrays, path) for space in (target, *children)]
        return {"!": "space", "of": generators}
    if not hasattr(target, "__dict__"):
        raise Unencodable(f"{path} is {type(target).__module__}.{type(target).__qualname__}")
    skip = {name for base in type(target).__mro__ for name in NOT_STATE.get(base.__name__, ())}
    state = {
        name: encode_object(value, arrays, f"{path}.{name}", seen) for name, value in vars(target).items() if name not in skip
    }
    return {"!": "object", "class": type(target).__qualname__, "of": state}


def restore_object(target: Any, node: Json, arrays: Arrays, path: str) -> Any:
    """
    :param target: an object set up like the one that was stored; it is changed in place where that can be
    :param node: what ``encode_object`` returned
    :param arrays: what it put there
    :param path: where the object is
    :return: what belongs in its place: the target, or a new value
    :raises ValueError: if the target is of another class
    """
    kind = node.get("!") if isinstance(node, dict) else None
    if kind == "skip":
        return target
    if kind == "ale":
        from ale_py import ALEState

        target.restoreState(ALEState(decode(node["of"], arrays)))
    elif kind == "state_dict":
        target.load_state_dict(decode(node["of"], arrays))
    elif kind == "space":
        parts = getattr(target, "spaces", ())
        children = parts.values() if isinstance(parts, dict) else parts
        for space, generator in zip((target, *children), node["of"], strict=True):
            space._np_random = decode(generator, arrays)
    elif kind == "items":
        items = target.values() if isinstance(target, dict) else target
        for key, (item, child) in enumerate(zip(list(items), node["of"], strict=True)):
            restore_object(item, child, arrays, f"{path}/{key}")
    elif kind == "object":
        if type(target).__qualname__ != node["class"]:
            raise ValueError(f"{path} is {type(target).__qualname__}: in the checkpoint it is {node['class']}")
        for name, child in node["of"].items():
            value = restore_object(getattr(target, name, None), child, arrays, f"{path}.{name}")
            if value is not getattr(target, name, None):
                setattr(target, name, value)
    elif kind == "array" and isinstance(target, np.ndarray) and target.shape == arrays[node["of"]].shape:
        target[...] = arrays[node["of"]]  # others may hold the same array
    else:
        # Not the checkpoint's own memory: what is restored goes on changing
        return _own(decode(node, arrays))
    return target


def _own(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list | tuple):
        return type(value)(map(_own, value))
    return {key: _own(item) for key, item in value.items()} if isinstance(value, dict) else value

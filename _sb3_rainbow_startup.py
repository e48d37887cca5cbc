"""
Makes RL Zoo know Rainbow: called at every start of Python by ``sb3_rainbow_zoo.pth`` (``.start`` from Python 3.15 on).

It imports nothing then that Python has not imported itself. All it does is to wait for RL Zoo's own modules: when one of
them is imported, ``sb3_rainbow.zoo`` registers the algorithm there. The environment variable ``SB3_RAINBOW_NO_ZOO=1``
switches it off. It lies beside the package, not in it, as importing anything from ``sb3_rainbow`` imports torch.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is not to be imported at start-up
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

#: RL Zoo's modules that are extended, in the order in which they import each other
MODULES = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager")


class ZooFinder:
    """Finds ``MODULES`` as the other finders do, and extends each one right after it was executed."""

    busy = False
    warned = False

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """
        :param name: full name of the module that is imported
        :param path: where to look for it
        :param target: module that is reloaded, if any
        :return: its genuine spec, or None if it is none of ours
        """
        if self.busy or name not in MODULES:
            return None
        from importlib.util import find_spec

        self.busy = True
        try:
            spec = find_spec(name)
        finally:
            self.busy = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: "ModuleType") -> None:
                execute(module)
                extend(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def extend(module: "ModuleType") -> None:
    """
    Register Rainbow in one of RL Zoo's modules. Whatever goes wrong is a warning: RL Zoo must work for everything else.

    :param module: one of ``MODULES``, executed
    """
    try:
        from sb3_rainbow import zoo

        zoo.PATCHES[module.__name__](module)
    except Exception as error:
        if ZooFinder.warned:  # the other modules fail as the first one did
            return
        ZooFinder.warned = True
        import warnings

        message = (
            f"sb3-rainbow could not register with RL Zoo ({error!r}). Use: python -m sb3_rainbow.zoo train --algo rainbow ..."
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def install() -> None:
    """Wait for RL Zoo, and extend what has been imported of it. Doing it twice changes nothing."""
    import os

    if os.environ.get("SB3_RAINBOW_NO_ZOO") == "1":
        return
    if not any(type(finder).__name__ == "ZooFinder" for finder in sys.meta_path):
        sys.meta_path.insert(0, ZooFinder())
    for name in MODULES:
        module = sys.modules.get(name)
        # One that is still being executed comes by way of the finder
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            extend(module)

"""Build hook: adds what makes ``import rl_zoo3`` know Rainbow to the wheel or to the editable install."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StartupHook(BuildHookInterface[Any]):
    """Puts the start-up lines beside the package, and the hyperparameters into it (an editable install finds its own)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """
        :param version: ``"standard"`` for a wheel, ``"editable"`` for an editable install
        :param build_data: hatchling's, changed in place
        """
        if self.target_name != "wheel":
            return
        editable = version == "editable"
        files = build_data["force_include_editable" if editable else "force_include"]
        for name in ("sb3_rainbow_zoo.pth", "sb3_rainbow_zoo.start"):
            files[str(Path(self.root, name))] = name
        if not editable:
            files[str(Path(self.root, "hyperparams"))] = "sb3_rainbow/hyperparams"

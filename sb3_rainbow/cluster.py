"""Ray, which need not be installed."""

import os
from typing import Any


def connect(address: str | None = None, num_cpus: int | None = None) -> Any:
    """
    Join a cluster, or start a Ray of this machine's own.

    :param address: of the cluster, ``"auto"`` for the one that this machine is part of; None for that of the environment
        variable ``RAY_ADDRESS``, and if there is none, a Ray of this machine's own
    :param num_cpus: cores of this machine's own Ray; None for all
    :return: the module ``ray``
    :raises ImportError: if Ray is not installed
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError(f'Ray is needed: pip install "sb3-rainbow[ray]" ({error})') from error
    if not ray.is_initialized():
        settings: dict[str, Any] = {"address": address}
        if address is None and "RAY_ADDRESS" not in os.environ:
            settings = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="warning", **settings)
    return ray

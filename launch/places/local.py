"""This machine: a Ray of the run's own, or one that is there already. As `laconic train`."""

from __future__ import annotations

import os
import warnings

from launch import hardware as machines
from launch.hardware import Hardware
from launch.places.base import Order
from samplers.seam import Component


class Config(Component):
    address: str | None = None
    """Of a running Ray that this machine is a node of, as HOST:6379 or auto. None: the one that
    RAY_ADDRESS names, else one is started for the run."""


def hardware(config: Config) -> Hardware | None:
    return None if _address(config) else machines.this_machine()


def launch(order: Order, config: Config) -> int:
    if order.detach:
        warnings.warn("--detach has no effect with --on local: it runs here", stacklevel=2)
    if order.dry_run:
        print(order.train(_address(config) or "").removesuffix(" --address ''"))
        return 0
    from launch.run import train

    print(train(order.resolved, address=_address(config)))
    return 0


def _address(config: Config) -> str | None:
    return config.address or os.environ.get("RAY_ADDRESS") or None

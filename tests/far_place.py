"""A place of somebody's own, as `--on tests.far_place`: one node, whose GPUs a site file counts."""

from __future__ import annotations

from launch.hardware import Cluster, Hardware, Node
from launch.places.base import Order
from samplers.seam import Component

ORDERS: list[Order] = []
"""What reached it."""


class Config(Component):
    gpus: int = 0
    memory: float = 80e9


def hardware(config: Config) -> Hardware | None:
    return Hardware(Cluster((Node(config.gpus, gpu_bytes=config.memory),)))


def launch(order: Order, config: Config) -> int:
    ORDERS.append(order)
    return 7

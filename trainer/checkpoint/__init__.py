"""Checkpoints: whole or not there, verified before they are gone on from, the best kept beside.

See README.md beside: what one holds, what is promised, how it is read by hand.
"""

from trainer.checkpoint.config import CheckpointConfig, unmeasured
from trainer.checkpoint.contents import STATE, apart, driver_state
from trainer.checkpoint.files import COMPLETE, clean, complete, manifest, newest, step_of, write
from trainer.checkpoint.keeper import Keeper
from trainer.checkpoint.keeping import abandon, point, save
from trainer.checkpoint.verify import damage, intact

__all__ = [
    "COMPLETE",
    "STATE",
    "CheckpointConfig",
    "Keeper",
    "abandon",
    "apart",
    "clean",
    "complete",
    "damage",
    "driver_state",
    "intact",
    "manifest",
    "newest",
    "point",
    "save",
    "step_of",
    "unmeasured",
    "write",
]

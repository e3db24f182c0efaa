"""What is not as it was when a run stopped: found, told with what it means, refused where wrong."""

from trainer.changes.compare import LEFT_OUT, Change, compare, same_bits, told, weigh
from trainer.changes.facts import SOURCE, facts, of_state, recorded, versions, write
from trainer.changes.rules import At

__all__ = [
    "LEFT_OUT",
    "SOURCE",
    "At",
    "Change",
    "compare",
    "facts",
    "of_state",
    "recorded",
    "same_bits",
    "told",
    "versions",
    "weigh",
    "write",
]

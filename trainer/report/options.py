"""What a report is asked for beyond the usual."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

MANY = 6
"""With more arms than this, each is compared with one of them instead of with every other."""


@dataclass(frozen=True, slots=True)
class Options:
    against: str | None = None
    """The arm that others are compared with. None: the first, where there are many; where there
    are few, every arm is compared with every other."""
    reach: float | None = None
    """Tell how many generated tokens it takes until the area under caps is this."""
    at_tokens: int | None = None
    """Compare area and accuracy after so many generated tokens."""
    show: tuple[str, ...] = ()
    """Metrics of evaluations to add to the table and to the comparisons."""

    @property
    def of_tokens(self) -> bool:
        """Whether anything is asked about generated tokens."""
        return self.reach is not None or self.at_tokens is not None

    def check(self, names: Iterable[str]) -> None:
        """Raise ValueError unless the arm to compare with is one of `names`."""
        there = list(dict.fromkeys(names))
        if self.against is not None and self.against not in there:
            raise ValueError(
                f"--against: no arm '{self.against}'; there are {', '.join(there) or 'none'}"
            )

    def check_shown(self, metrics: Collection[str]) -> None:
        """Raise ValueError unless what is to be shown is among `metrics`, those measured."""
        for metric in self.show if metrics else ():
            if metric not in metrics:
                near = difflib.get_close_matches(metric, metrics, n=3, cutoff=0.4)
                hint = f"; near it: {', '.join(near)}" if near else ""
                raise ValueError(f"--show: no evaluation has '{metric}'{hint}")

    def opposite(self, names: list[str]) -> str | None:
        """The arm that all others are compared with; None: every pair is."""
        return self.against or (names[0] if len(names) > MANY else None)

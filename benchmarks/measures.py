"""What a scenario found, against its goal."""

import math

from msgspec import Struct


class Measure(Struct, frozen=True):
    """One line of a table; without a bound it is there to compare."""

    what: str
    batchrun: float
    plain_loop: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        below = self.at_least is not None and not self.batchrun >= self.at_least
        return not below and (self.at_most is None or self.batchrun <= self.at_most)

    def line(self, title: str) -> str:
        plain = "" if self.plain_loop is None else _text(self.plain_loop)
        return f"| {title} | {self.what} | {self._goal()} | {self._ours()} | {plain} |"

    def short_line(self) -> str:
        """Where there is nothing to compare with."""
        return f"| {self.what} | {self._goal()} | {self._ours()} |"

    def _goal(self) -> str:
        if self.at_most is not None:
            return f"at most {_text(self.at_most)}"
        return "" if self.at_least is None else f"at least {_text(self.at_least)}"

    def _ours(self) -> str:
        return _text(self.batchrun) + ("" if self.met else " **missed**")


def _text(value: float) -> str:
    if math.isinf(value):
        return "never"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.3f}" if value < 2 else f"{value:,.1f}"

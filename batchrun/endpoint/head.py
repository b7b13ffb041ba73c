"""The headers of an answer as they came, each made text when it is asked for."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any


class Headers(Mapping[str, str]):
    """By name in lower case; the first of a name counts.

    Of some twenty headers a handful is looked at: all of them in a multidict took 4.3 µs of a row,
    this 0.7 and 0.1 for each one looked at.
    """

    __slots__ = ("_at", "_values")

    def __init__(self, lines: Mapping[bytes, bytes]) -> None:
        self._at = _places(tuple(lines))
        self._values = tuple(lines.values())

    def __getitem__(self, name: str) -> str:
        return self._values[self._at[name]].decode("utf-8", "surrogateescape")

    def get(self, name: str, /, default: Any = None) -> Any:  # Mapping's raises and catches
        at = self._at.get(name)
        return default if at is None else self._values[at].decode("utf-8", "surrogateescape")

    def pair(self, one: str, other: str) -> tuple[bytes | None, bytes | None]:
        """Two values as they came."""
        at, other_at = self._at.get(one), self._at.get(other)
        values = self._values
        return None if at is None else values[at], None if other_at is None else values[other_at]

    def tells_any(self, names: frozenset[str]) -> bool:
        """Whether one of these is there."""
        return not self._at.keys().isdisjoint(names)

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


@lru_cache(maxsize=64)
def _places(names: tuple[bytes, ...]) -> dict[str, int]:
    """Where each name stands. A server's answers have the same few sets of names."""
    places: dict[str, int] = {}
    for at, name in enumerate(names):
        places.setdefault(name.decode("latin-1").lower(), at)
    return places

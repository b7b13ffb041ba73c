"""What every mode of sending shares: connections, the address, the clock that ends tries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from multidict import istr
from yarl import URL

from batchrun.endpoint.connections import Connections
from batchrun.endpoint.deadlines import DeadlineWatch
from batchrun.endpoint.headers import told_limits
from batchrun.endpoint.room import Room
from batchrun.endpoint.veil import Veil
from batchrun.job import EndpointJob
from batchrun.records import ToldLimit

_EVERY_S = 0.01
_ERRORS = 300  # and above
_SIZES = (istr("x-ratelimit-limit-requests"), istr("x-ratelimit-limit-tokens"))
_MOST_SIZES = 64


class ToldLimits:
    """The limits that answers tell; of those that tell the same sizes, a hundred a second are read.

    What is left of a limit changes with each answer, and a row's share of reading it is 12 of
    180 µs. Another model, or a limit that was changed, has other sizes and is read at once.
    """

    def __init__(self) -> None:
        self._read_s: dict[tuple[str | None, ...], float] = {}  # by sizes

    def read(
        self, headers: Mapping[str, str], http_status: int, now_s: float
    ) -> tuple[ToldLimit, ...]:
        """Those of one answer; of an error always."""
        sizes = (headers.get(_SIZES[0]), headers.get(_SIZES[1]))
        if http_status < _ERRORS and now_s < self._read_s.get(sizes, -math.inf) + _EVERY_S:
            return ()
        if len(self._read_s) >= _MOST_SIZES:
            self._read_s.clear()
        self._read_s[sizes] = now_s
        return told_limits(headers)


@dataclass(frozen=True, slots=True)
class Wire:
    """One endpoint, connected."""

    connections: Connections  # know the headers, the key among them
    url: URL  # of POST /responses
    settings: EndpointJob
    watch: DeadlineWatch
    limits: ToldLimits
    room: Room  # for answers that arrive
    veil: Veil  # between what comes over the wire and everybody else

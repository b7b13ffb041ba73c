"""What every mode of sending shares: connections, the address, the clock that ends tries."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

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


class Limits:
    """The limits that answers tell, read a hundred times a second at most.

    What changes sooner matters to nobody, and a row's share of reading it is 12 of 180 µs.
    """

    def __init__(self) -> None:
        self._read_s = -math.inf

    def told(self, headers: Mapping[str, str], http_status: int) -> tuple[ToldLimit, ...]:
        """Those of one answer; of an error always."""
        now_s = time.monotonic()
        if http_status < _ERRORS and now_s < self._read_s + _EVERY_S:
            return ()
        self._read_s = now_s
        return told_limits(headers)


@dataclass(frozen=True, slots=True)
class Wire:
    """One endpoint, connected."""

    connections: Connections  # know the headers, the key among them
    url: URL  # of POST /responses
    settings: EndpointJob
    watch: DeadlineWatch
    limits: Limits
    room: Room  # for answers that arrive
    veil: Veil  # between what comes over the wire and everybody else

"""What every mode of sending shares: connections, the address, the clock that ends tries."""

from dataclasses import dataclass

from yarl import URL

from batchrun.endpoint.connections import Connections
from batchrun.endpoint.deadlines import DeadlineWatch
from batchrun.endpoint.headers import ToldLimits
from batchrun.endpoint.room import Room
from batchrun.endpoint.veil import Veil
from batchrun.job import EndpointJob


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

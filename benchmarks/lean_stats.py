"""What the lean server saw, as GET /stats tells it."""

from msgspec import Struct


class Stats(Struct, frozen=True):
    """One item for each request in each list, in the order of arrival.

    Times are seconds since the first request arrived, which was at `first_s` on the machine's
    monotonic clock (null: none has come).
    """

    first_s: float | None
    now_s: float
    arrived: list[float]
    ended: list[float]  # when its answer was written; -1 where it was not
    statuses: list[int]  # as decided on arrival: 200, 429 or 503
    inputs: list[int]  # tokens of the request
    reserved: list[int]  # tokens taken on arrival
    used: list[int]  # tokens in the end; 0 where it was refused

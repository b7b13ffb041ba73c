"""One worker's shares of the common limits, and what it has used of them. No I/O.

Plain values, as totals since the worker began, so that a message that is lost, late or repeated
does no harm. A worker obeys the latest shares, by the number of the message.
"""

from msgspec import Struct

from batchrun.records import Scope

WHOLE = 1_000_000  # parts of a rate; the shares of all workers never add up to more
DOLLAR = 10**12  # purses are whole picodollars


class Allowance(Struct, frozen=True):
    """Requests or tokens that may be started."""

    most: int  # total since the worker began; tokens as reserved
    pace: float  # a second


class Shares(Struct, frozen=True):
    """What a worker may use from now on; None: no limit."""

    in_flight: int = 0
    purse: int | None = None  # picodollars, reservations included, since it began
    requests: Allowance | None = None
    tokens: Allowance | None = None
    rate: int = 0  # parts of the advertised or inferred rate
    before: int = 0  # those of the workers before it
    absences: int = 0  # how often others were given its part, because it stood still
    leads: bool = True  # it measures, for all workers, servers that queue


class Flow(Struct, frozen=True):
    """Requests or tokens that a worker has started."""

    started: int = 0  # since it began, as the allowance counts; tokens as reserved
    counted: int = 0  # in the last minute; tokens as used, if known
    wanted: int = 0  # by what waits first, where the allowance does not do; 0: nothing waits for it
    lapses: tuple[int, ...] = ()  # of what counts, what ceases to in each second from now on


class Spending(Struct, frozen=True):
    """Picodollars since the worker began."""

    spent: int = 0
    unknown: int = 0  # reserved for attempts that reported no usage
    reserved: int = 0  # for attempts in flight
    wanted: int = 0  # by the first waiting request, if the purse is too small; else 0


class ScopeNews(Struct, frozen=True):
    """What one worker, or all together, know about a scope."""

    scope: Scope
    is_answered: bool = False  # the first request was answered: others may follow
    cooldown_s: float = 0.0  # how long nothing is sent
    in_flight: int | None = None  # the best number in all at a server that queues
    rate: float | None = None  # requests a second that the server accepts in all, as inferred
    takes: float | None = None  # requests in flight, the same
    excess: int = 0  # in flight at this worker, beyond its part of these
    is_settled: bool = False  # what is inferred is more than a guess
    down: str | None = None  # the last error of an endpoint that is down
    answered_s: float | None = None  # since the last answer that was no error; null: none so far


class SharesUsed(Struct, frozen=True):
    """What a worker has used of its shares."""

    in_flight: int = 0
    waiting: int = 0  # requests that wait for a limit
    started: int = 0  # requests since it began
    for_slots: bool = False  # the first waiting request waits for a slot, ...
    for_rate: bool = False  # ... or for a limit of the server
    requests: Flow = Flow()
    tokens: Flow = Flow()
    spending: Spending = Spending()
    scopes: tuple[ScopeNews, ...] = ()

"""Divides one limit among workers by promises, whose sum never exceeds the limit. No I/O.

A promise counts from when it is sent until the worker reports that it obeys a later one: before
that, nobody knows which of the ticks have reached it. So one worker's promise is lowered first,
and another's is raised only when the first one obeys.
"""

import itertools
import math
from collections import deque
from collections.abc import Sequence

from msgspec import Struct, field

from batchrun.limits.sharing.shares import Flow


class Promises:
    """The promises to one worker that it may still obey."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: deque[tuple[int, int]] = deque([(0, 0)])  # number of the tick, amount

    @property
    def latest(self) -> int:
        return self._told[-1][1]

    @property
    def most(self) -> int:
        """The largest promise that it may obey now or later."""
        return max(amount for _, amount in self._told)

    def tell(self, seq: int, amount: int) -> int:
        """Notes what the tick of that number promises; returns the amount."""
        if amount != self._told[-1][1]:
            self._told.append((seq, amount))
        return amount

    def obeys(self, seq: int) -> None:
        """Notes that the worker obeys that tick or a later one."""
        while len(self._told) > 1 and self._told[1][0] <= seq:
            self._told.popleft()


def divide(total: int, wants: Sequence[float]) -> list[int]:
    """Divides as evenly as possible; nobody gets more than it wants, and the rest stays."""
    parts, left = [0] * len(wants), total
    order = sorted(range(len(wants)), key=lambda at: wants[at])
    for place, at in enumerate(order):
        even = left // (len(order) - place)
        parts[at] = even if wants[at] >= even else math.ceil(wants[at])
        left -= parts[at]
    return parts


class _Holder(Struct):
    """One worker's part of a stock."""

    promises: Promises = field(default_factory=Promises)
    used: int = 0  # as last reported: it may keep this, even if its promise is lowered
    wants: float = math.inf


class Stock:
    """Slots, or parts of a rate: what one worker returns can go to another."""

    def __init__(self, total: int, step: float = 0.0) -> None:
        """`step`: a part is changed only by more than this share of it."""
        self.total = total
        self._step = step
        self._holders: dict[int, _Holder] = {}

    def __contains__(self, worker: int) -> bool:
        return worker in self._holders

    @property
    def free(self) -> int:
        """What is promised to nobody."""
        return self.total - sum(self.held(one) for one in self._holders)

    def held(self, worker: int) -> int:
        """The most that it may use now or later."""
        holder = self._holders[worker]
        return max(holder.promises.most, holder.used)

    def latest(self, worker: int) -> int:
        return self._holders[worker].promises.latest

    def before(self, worker: int) -> int:
        """What those that came before it were told last."""
        earlier = itertools.takewhile(lambda one: one != worker, self._holders)
        return sum(self.latest(one) for one in earlier)

    def join(self, worker: int) -> None:
        self._holders[worker] = _Holder()

    def leave(self, worker: int) -> None:
        """Removes a worker that can use nothing any more."""
        self._holders.pop(worker, None)

    def suspend(self, worker: int) -> None:
        """Gives its part to others, although it may use it for a moment longer."""
        self._holders[worker] = _Holder(wants=0)

    def heard(self, worker: int, seq: int, used: int, wants: float) -> None:
        """`wants`: infinite where it would use more than it has."""
        holder = self._holders[worker]
        holder.promises.obeys(seq)
        holder.used, holder.wants = used, wants

    def give(
        self, worker: int, seq: int, most: float = math.inf, *, only: int | None = None
    ) -> int:
        """The worker's part from the tick of that number on; at most `most`.

        `only`: the one worker that gets anything, if given.
        """
        if only is not None:
            holder = self._holders[worker]
            mine = holder.promises.latest + max(0, self.free) if only == worker else 0
            return holder.promises.tell(seq, int(min(mine, most)))
        names = list(self._holders)
        parts = divide(self.total, [self._holders[one].wants for one in names])
        spare = (self.total - sum(parts)) // len(parts)  # what nobody wants is spread evenly
        targets = {name: part + spare for name, part in zip(names, parts, strict=True)}
        promises, free = self._holders[worker].promises, max(0, self.free)
        mine, target = promises.latest, targets[worker]
        missing = sum(
            max(0, targets[one] - holder.promises.latest)
            for one, holder in self._holders.items()
            if one != worker and holder.wants == math.inf
        )
        if target > mine * (1 + self._step) or (mine == 0 and target):
            mine += min(target - mine, free)
        elif target < mine * (1 - self._step) and missing > free:
            mine = target
        return promises.tell(seq, int(min(mine, most)))


class _Claim(Struct):
    """One worker's part of something that is used up."""

    promises: Promises = field(default_factory=Promises)  # totals since it began
    flow: Flow = Flow()  # what it has used, as last reported
    heard_s: float = 0.0  # when that was
    wanted: int = 0  # by the first request that waits
    since_s: float = math.inf  # since when that request waits, perhaps for something else

    @property
    def left(self) -> int:
        """The unused part of the latest promise, as far as is known."""
        return max(0, self.promises.latest - self.flow.started)

    def counts(self, now_s: float) -> int:
        """How much of what it has used still counts, as far as is known."""
        return self.flow.counted - sum(self.flow.lapses[: self._seconds(now_s)])

    def held(self, now_s: float) -> int:
        return self.counts(now_s) + max(0, self.promises.most - self.flow.started)

    def later(self, now_s: float) -> list[tuple[float, int]]:
        """When which amounts cease to count, as far as that was reported."""
        first = self._seconds(now_s)
        left = enumerate(self.flow.lapses[first:], first + 1)
        return [(self.heard_s + second, amount) for second, amount in left if amount]

    def _seconds(self, now_s: float) -> int:
        """Whole seconds since its report arrived; it was made before that."""
        return max(0, int(now_s - self.heard_s))


class Grants:
    """Starts a minute, or dollars: what is used counts for a minute, or forever.

    Workers whose first request needs more than they have are served in the order in which these
    requests began to wait; the order is the same for everything that a request needs.
    """

    _KEPT_S = 1.0  # one may wait so long before others must return what they do not use

    def __init__(self, total: int, *, expires: bool) -> None:
        """`expires`: use counts for a time; a request above the limit may start alone then."""
        self.total, self._expires = total, expires
        self._claims: dict[int, _Claim] = {}
        self._past: list[tuple[float, int]] = []  # of dead workers: until when, amount

    def join(self, worker: int) -> None:
        self._claims[worker] = _Claim()

    def leave(
        self, worker: int, now_s: float, lasts_s: float = math.inf, amount: int | None = None
    ) -> None:
        """Removes a worker that can use nothing any more; use not reported counts for so long.

        `amount`: what it has used, if that is known.
        """
        claim = self._claims.pop(worker, None)
        if claim is None:
            return
        later = claim.later(now_s)
        rest = claim.held(now_s) - sum(part for _, part in later) if amount is None else amount
        self._past = sorted([*self._past, *later, (now_s + lasts_s, rest)])

    def heard(self, worker: int, seq: int, since_s: float, flow: Flow, now_s: float) -> None:
        """`since_s`: since when its first request waits, for this or for something else."""
        claim = self._claims[worker]
        claim.promises.obeys(seq)
        claim.flow, claim.wanted, claim.since_s, claim.heard_s = flow, flow.wanted, since_s, now_s

    def suspend(self, worker: int) -> None:
        """Nobody waits for what it waits for, until it is heard of again."""
        self._claims[worker].wanted = 0

    def free(self, now_s: float) -> int:
        """What nobody has used or can use."""
        if self._past and self._past[0][0] <= now_s:
            self._past = [one for one in self._past if one[0] > now_s]
        past = sum(amount for _, amount in self._past)
        return self.total - past - sum(one.held(now_s) for one in self._claims.values())

    def held(self, worker: int, now_s: float) -> int:
        return self._claims[worker].held(now_s)

    def short(self) -> list[int]:
        """Workers whose first request waits, the longest waiting first."""
        names = [name for name, one in self._claims.items() if one.wanted]
        return sorted(names, key=self._place)

    def _place(self, worker: int) -> tuple[float, int]:
        """The order of waiting workers."""
        return self._claims[worker].since_s, worker

    def lacking(self, now_s: float) -> int | None:
        """What the worker that waits longest needs and cannot get; None if it can still get it.

        Known only when the others have returned what they have not used.
        """
        short = self.short()
        if not short:
            return None
        first = self._claims[short[0]]
        others = [one for one in self._claims.values() if one is not first]
        if any(one.held(now_s) > one.counts(now_s) for one in others):
            return None
        has = self.free(now_s) + first.held(now_s) - first.counts(now_s)
        return first.wanted if first.wanted > has else None

    def give(self, worker: int, seq: int, headroom: int, now_s: float) -> int:
        """The total that the worker may use since it began, from the tick of that number on."""
        claim, free, short = self._claims[worker], self.free(now_s), self.short()
        first = short[0] if short else None
        ahead = short[: short.index(worker)] if claim.wanted else short
        room = free - sum(self._missing(self._claims[name]) for name in ahead)
        wanted = max(headroom, claim.wanted)
        amount = claim.promises.latest
        if self._expires and first == worker and claim.wanted > self.total:
            if free + claim.left >= self.total:
                amount = claim.flow.started + claim.wanted
        elif wanted > claim.left and room > 0 and claim.left + room >= claim.wanted:
            amount = claim.flow.started + min(wanted, claim.left + room)
        elif first is not None and first != worker and self._must_return(worker, first, free):
            waits_s = now_s - self._claims[first].since_s
            kept = 0 if claim.wanted or waits_s > self._KEPT_S else min(headroom, claim.left)
            amount = claim.flow.started + min(claim.left, kept)
        return claim.promises.tell(seq, amount)

    def _must_return(self, worker: int, first: int, free: int) -> bool:
        """Whether a worker must return what it does not use, for the one that waits longest.

        A worker that has waited longer for something else keeps it: otherwise it would never have
        everything that its request needs at once.
        """
        is_later = self._place(worker) > self._place(first)
        return is_later and self._missing(self._claims[first]) > free

    @staticmethod
    def _missing(claim: _Claim) -> int:
        return max(0, claim.wanted - claim.left)

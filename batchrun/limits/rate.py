"""Requests and tokens a minute: what the user allows, and what the server says. No I/O.

A start takes its share of time afterwards: the next one comes when the time of all before it has
passed, so that small requests cannot overtake a large one forever. Late timers are partly made up
for.

Both classes spread starts evenly. `MinuteLimit` is a promise to the user: it holds in any sliding
minute. `AdvertisedRate` follows the headers of the answers at once, up and down.
"""

import math
from collections import deque
from collections.abc import Callable
from operator import attrgetter

from batchrun.errors import ErrorKind
from batchrun.limits import tuning
from batchrun.limits.header_window import HeaderWindow
from batchrun.limits.rate_estimate import RefusedShare
from batchrun.limits.verdicts import GO, LimitStatus, Verdict, Wait
from batchrun.records import AdvertisedLimit, Finish, Need, Slot

_TOKENS, _INPUT, _OUTPUT = "tokens", "input tokens", "output tokens"
_SIDES = (_INPUT, _OUTPUT)
# What an attempt needs of each limit on tokens.
_AMOUNTS: dict[str, Callable[[Need], int]] = {
    _TOKENS: attrgetter("tokens"),
    _INPUT: lambda need: need.tokens - need.output_tokens,
    _OUTPUT: attrgetter("output_tokens"),
}


class Spacing:
    """When the next start may come."""

    __slots__ = ("_returned_s", "_tolerance_s", "next_s", "rate")

    def __init__(self, rate: float, tolerance_s: float = tuning.LATE_S) -> None:
        self.rate = rate  # a second
        self.next_s = 0.0  # when the time of all starts so far has passed
        self._tolerance_s = tolerance_s
        self._returned_s = 0.0  # returned time before `next_s` that may still be used

    def is_due(self, now_s: float) -> bool:
        return self.next_s <= now_s + tuning.EARLY_S

    def start(self, amount: float, now_s: float) -> None:
        next_s = self.next_s
        behind_s = now_s - self._tolerance_s - next_s
        if behind_s <= 0:
            self._returned_s = 0.0
        else:  # unused time is lost, except the tolerance and what was returned
            self._returned_s = min(self._returned_s, behind_s)
            next_s += behind_s - self._returned_s
        self.next_s = next_s + amount / self.rate

    def give_back(self, amount: float) -> None:
        """Returns what a start did not need; a negative amount takes more."""
        share_s = amount / self.rate
        self.next_s -= share_s
        returned_s = self._returned_s + share_s
        self._returned_s = returned_s if returned_s > 0 else 0.0

    def hold_back(self, amount: float, until_s: float) -> None:
        """Drops unused time; the next start comes `amount` after `until_s`."""
        self.next_s = max(self.next_s, until_s) + amount / self.rate
        self._returned_s = 0.0

    def change(self, rate: float, now_s: float) -> None:
        """Sets the rate, also for the time that has not passed yet."""
        if self.next_s > now_s:
            self.next_s = now_s + (self.next_s - now_s) * (self.rate / rate)
        self._returned_s *= self.rate / rate
        self.rate = rate


class MinuteLimit:
    """At most so many requests or tokens (`of`) in any sliding minute; evenly spaced.

    Tokens count from the start of the attempt: as reserved while in flight, then as used. An
    attempt that is larger than the limit starts when nothing else counts any more.
    """

    def __init__(self, of: str, most: float) -> None:
        self._name = f"{of} a minute"
        self._most = most
        self._of_tokens = of == "tokens"
        self.minute_s = tuning.MINUTE_S if self._of_tokens else tuning.REQUESTS_MINUTE_S
        # A large need waits until the minute has room; the time that others waited is made up for.
        self._spacing = Spacing(
            most / self.minute_s, tuning.TOKENS_LATE_S if self._of_tokens else tuning.LATE_S
        )
        self._in_flight = 0
        self._total = 0.0
        self._log: deque[list[float]] = deque()  # [tick, amount], oldest first
        self._by_tick: dict[int, list[float]] = {}

    def verdict(self, need: Need, now_s: float) -> Verdict:
        amount = need.tokens if self._of_tokens else 1
        if self._total + amount > self._most:
            self._forget(now_s)
            if self._total + amount > self._most:
                if self._log:
                    return Wait(self._expires_s(self._log[0]))
                if self._in_flight:  # larger than the limit: starts when all others have ended
                    return Wait()
        if self._log and not self._spacing.is_due(now_s):
            return Wait(self._spacing.next_s)
        return GO

    def started(self, need: Need, now_s: float) -> None:
        self._forget(now_s)
        amount = need.tokens if self._of_tokens else 1
        if not self._log:
            self._spacing.next_s = min(self._spacing.next_s, now_s)
        self._spacing.start(amount, now_s)
        self._in_flight += 1
        self._total += amount
        tick = math.floor(now_s / tuning.MERGED_S)
        entry = self._by_tick.get(tick)
        if entry is None:
            entry = self._by_tick[tick] = [tick, 0.0]
            self._log.append(entry)
        entry[1] += amount

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        self._in_flight -= 1
        if not self._of_tokens or finish.tokens is None:
            return
        entry = self._by_tick.get(math.floor(slot.started_s / tuning.MERGED_S))
        if entry is None:
            return
        unused = slot.need.tokens - finish.tokens
        entry[1] -= unused
        self._total -= unused
        self._spacing.give_back(unused)

    def counted(self, now_s: float) -> float:
        """How much counts in the minute that ends now."""
        self._forget(now_s)
        return self._total

    def lapses(self, now_s: float) -> tuple[int, ...]:
        """Of what counts now, how much ceases to within each second from now on."""
        self._forget(now_s)
        parts = [0.0] * (math.ceil(self.minute_s) + 1)
        for entry in self._log:
            parts[int(self._expires_s(entry) - now_s)] += entry[1]
        return tuple(map(int, parts))

    def set_pace(self, per_s: float, now_s: float) -> None:
        """Spaces starts by this rate, not by the limit's."""
        if per_s != self._spacing.rate:
            self._spacing.change(per_s, now_s)

    def status(self, now_s: float) -> LimitStatus:
        self._forget(now_s)
        until_s = self._spacing.next_s
        return LimitStatus(
            self._name,
            self._total,
            self._most,
            until_s if until_s > now_s else None,
            of="tokens" if self._of_tokens else "requests",
            per_s=self._most / self.minute_s,
        )

    def _expires_s(self, entry: list[float]) -> float:
        return (entry[0] + 1) * tuning.MERGED_S + self.minute_s + tuning.ROUNDED_S

    def _forget(self, now_s: float) -> None:
        while self._log and self._expires_s(self._log[0]) <= now_s:
            tick, amount = self._log.popleft()
            del self._by_tick[int(tick)]
            self._total -= amount
        if not self._log:
            self._total = 0.0  # sums of fractions drift


class AdvertisedRate:
    """The rate that the server's headers advertise for one scope.

    `of` is requests or tokens; tokens include input and output tokens with limits of their own.
    """

    def __init__(self, of: str, *, is_replaced: bool = False) -> None:
        """`is_replaced`: the user sets this limit, so headers are ignored."""
        self._of = of
        self._is_replaced = is_replaced
        self._of_tokens = of in _AMOUNTS
        self._amount: Callable[[Need], int] = _AMOUNTS.get(of, lambda _need: 1)
        self._sides: tuple[AdvertisedRate, ...] = ()  # input and output, once a header has one
        self._headers: dict[str, HeaderWindow] = {}
        self._binding: str | None = None  # the header of the lowest limit
        self._spacing = Spacing(1.0)
        self._updated_s = -math.inf  # when the attempt with the latest headers was sent
        self._share = 1.0  # of the advertised rate; lower if refusals come in spite of it
        self._part = 1.0  # this process's part of it
        self._pressed_s = -math.inf  # when an attempt last had to wait
        self._cut_s = -math.inf  # refusals of requests sent before belong to one wave
        self._strikes = 0.0
        self._refused_share = RefusedShare()
        self._sent = 0
        self._strike_sent = 0
        self._grown_s = -math.inf
        self.least_rate = 0.0  # a second; known from headers even if the rate is not

    @property
    def rate(self) -> float:
        """The advertised rate a second; infinite if there is none."""
        own = self._headers[self._binding].rate if self._binding is not None else math.inf
        return min((own, *(side.rate for side in self._sides))) if self._sides else own

    @property
    def is_spread(self) -> bool:
        """Whether the rate only makes the rest of a long window last."""
        return self._binding is not None and self._headers[self._binding].is_spread

    def has_room(self, slot: Slot, finish: Finish) -> bool:
        """Whether the server says that enough of the limit remained for a refused request."""
        said = {one.header: one for one in finish.advertised}
        amount = self._amount(slot.need)
        return all(
            header.has_room(said.get(name), amount) for name, header in self._headers.items()
        ) and all(side.has_room(slot, finish) for side in self._sides)

    def set_part(self, part: float, now_s: float) -> None:
        """Sets this process's part of the advertised rate."""
        for side in self._sides:
            side.set_part(part, now_s)
        self._spacing.change(self._spacing.rate * (part / self._part), now_s)
        self._part = part

    def verdict(self, need: Need, now_s: float) -> Verdict:
        if self._sides:
            waits = [side.verdict(need, now_s) for side in self._sides]
            latest_s = max((one.until_s for one in waits if isinstance(one, Wait)), default=-1.0)
            if latest_s > max(now_s, self._opens_s()):
                return Wait(latest_s)
        if self._binding is None or self._spacing.next_s <= now_s + tuning.EARLY_S:
            return GO
        # Where little remains of a long window, the next start may be far beyond its end.
        if self._headers[self._binding].full_s <= now_s + tuning.EARLY_S:
            self._begin_window(self._headers[self._binding], now_s)
            return GO
        self._pressed_s = now_s
        return Wait(self._opens_s())

    def started(self, need: Need, now_s: float) -> None:
        for side in self._sides:
            side.started(need, now_s)
        if self._binding is not None:
            self._sent += 1
            self._spacing.start(self._amount(need) if self._of_tokens else 1, now_s)

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        if finish.advertised:
            self._follow_headers(slot, finish.advertised, now_s)
        for side in self._sides:
            side.finished(slot, finish, now_s)
        if self._is_replaced:
            return
        if finish.kind is ErrorKind.RATE_LIMIT:
            self._refused(slot, finish, now_s)
        elif self._share < 1.0 and now_s - self._grown_s >= 1.0:
            self._grown_s = now_s
            self._share = min(1.0, self._share * (1.01 if now_s - self._cut_s < 5 else 1.05))
        if self._of_tokens and self._binding is not None:
            used = finish.tokens if self._of == _TOKENS else _used(self._of, finish)
            if used is not None:
                self._spacing.give_back(self._amount(slot.need) - used)

    def status(self, now_s: float) -> LimitStatus:
        if self._sides:
            sides = [side.status(now_s) for side in self._sides]
            latest = max(sides, key=lambda one: (one.until_s or 0.0, -(one.per_s or math.inf)))
            if (latest.until_s or 0.0) > self._opens_s():
                return latest
        if self._binding is None:
            return LimitStatus(f"advertised limit on {self._of}")
        header = self._headers[self._binding]
        until_s = self._opens_s()
        return LimitStatus(
            self._binding,
            None,
            header.limit,
            until_s if until_s > now_s else None,
            of=self._of,
            per_s=header.rate,
        )

    def _opens_s(self) -> float:
        """When the next start may come: at the latest when the window is full again."""
        if self._binding is None:
            return -math.inf
        return min(self._spacing.next_s, self._headers[self._binding].full_s)

    def _begin_window(self, header: HeaderWindow, now_s: float) -> None:
        header.refill(now_s)
        self._binding = None
        self._bind(min(self._headers, key=lambda name: self._headers[name].rate), now_s)

    def _refused(self, slot: Slot, finish: Finish, now_s: float) -> None:
        """A few refusals are random; more mean a lower limit, or that others use it too.

        Where the server says that there is room, only a large share of refusals means that.
        """
        is_large, has_room = self._refused_share.is_large(self._sent), self.has_room(slot, finish)
        if slot.started_s <= self._cut_s or now_s - self._pressed_s > 1.0 or self._binding is None:
            return
        if has_room and not is_large:
            return
        self._cut_s = now_s
        # Nothing remains; after the hint there is enough for one more, perhaps a large one.
        self._spacing.hold_back(self._amount(slot.need), now_s + (finish.hint_s or 0.0))
        passed = self._sent - self._strike_sent
        self._strike_sent = self._sent
        self._strikes = max(0.0, self._strikes - passed / tuning.STRIKE_REQUESTS) + 1
        if self._strikes > tuning.STRIKES:
            self._share = max(self._share * tuning.STRIKE_CUT, 0.01)
            self._spacing.change(self._spacing.rate * tuning.STRIKE_CUT, now_s)

    def _follow_headers(
        self, slot: Slot, advertised: tuple[AdvertisedLimit, ...], now_s: float
    ) -> None:
        if self._of == _TOKENS and not self._sides and any(one.of in _SIDES for one in advertised):
            self._sides = tuple(map(AdvertisedRate, _SIDES))
            for side in self._sides:
                side.set_part(self._part, now_s)
        if not self._is_replaced and slot.started_s >= self._updated_s:  # else known is newer
            self._updated_s = slot.started_s
            self._update(advertised, now_s)

    def _update(self, advertised: tuple[AdvertisedLimit, ...], now_s: float) -> None:
        changed = False
        name, lowest = "", None
        for limit in advertised:
            if limit.of != self._of or limit.limit is None or limit.limit <= 0:
                continue
            header = self._headers.get(limit.header)
            if header is None:
                if len(self._headers) >= tuning.MOST_HEADERS:
                    continue
                header = HeaderWindow(is_by_second=self._of == "requests")
                self._headers[limit.header] = header
            before = header.limit, header.unit_s
            header.update(limit, limit.limit, now_s)
            changed = changed or (header.limit, header.unit_s) != before
            name, lowest = limit.header, header
        if len(self._headers) > 1:
            name, lowest = min(self._headers.items(), key=lambda item: item[1].rate)
        if lowest is None:
            return
        if lowest.rate == math.inf:
            self._binding = None
            self.least_rate = min(header.least_rate for header in self._headers.values())
            return
        if changed:
            self._share, self._strikes, self._cut_s = 1.0, 0.0, now_s
        self._bind(name, now_s)

    def _bind(self, name: str, now_s: float) -> None:
        """From now on, the limit of this header holds."""
        header = self._headers[name]
        rate = header.rate * header.factor * self._share * self._part
        if self._binding is None:
            self._spacing = Spacing(rate)
            self._spacing.next_s = now_s
        else:
            self._spacing.change(rate, now_s)
        self._binding = name


def _used(of: str, finish: Finish) -> int | None:
    """The tokens of that side, as the answer counts them; None if unknown."""
    if finish.tokens == 0:
        return 0
    if finish.tokens is None or finish.output_tokens is None:
        return None
    return finish.output_tokens if of == _OUTPUT else finish.tokens - finish.output_tokens

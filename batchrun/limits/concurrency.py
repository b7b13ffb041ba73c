"""How many attempts may be in flight. No I/O: the time is an argument."""

import math
from collections import deque
from collections.abc import Callable

from batchrun.errors import ErrorKind
from batchrun.limits import tuning
from batchrun.limits.rate_estimate import RandomRefusals
from batchrun.limits.verdicts import GO, LimitStatus, Verdict, Wait
from batchrun.records import Finish, Need, Slot


class InFlight:
    """A plain limit on attempts in flight."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = 0

    def verdict(self, need: Need, now_s: float) -> Verdict:
        return GO if self.now < self.most else Wait()

    def started(self, need: Need, now_s: float) -> None:
        self.now += 1

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        self.now -= 1

    def status(self, now_s: float) -> LimitStatus:
        return LimitStatus("requests in flight", self.now, self.most, of="in flight")


class FirstAlone:
    """The first attempt of a scope goes out alone: a wrong key or model costs one call.

    The others follow when the server has answered, or after `patience_s` without an answer.
    """

    def __init__(self, patience_s: float = tuning.FIRST_ALONE_S) -> None:
        self._patience_s = patience_s
        self._first_s = math.inf
        self._in_flight = 0
        self._open = False
        self.on_open: Callable[[], None] = lambda: None  # called once it lets all in

    def verdict(self, need: Need, now_s: float) -> Verdict:
        if self._open or self._in_flight == 0:
            return GO
        until_s = self._first_s + self._patience_s
        return GO if now_s >= until_s else Wait(until_s)

    def started(self, need: Need, now_s: float) -> None:
        self._first_s = min(self._first_s, now_s)
        self._in_flight += 1

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        self._in_flight -= 1
        if finish.answered:
            self.open()

    @property
    def is_open(self) -> bool:
        """Whether all attempts may start."""
        return self._open

    def open(self) -> None:
        """Lets all attempts start, since the server has answered."""
        if not self._open:
            self._open = True
            self.on_open()

    def status(self, now_s: float) -> LimitStatus:
        return LimitStatus("the first answer", self._in_flight, None if self._open else 1)


class InferredConcurrency:
    """How many attempts of one scope the server accepts at once, inferred from its refusals.

    The number doubles while nothing is refused and all of it is used. When requests are refused
    for load, the number is what is still in flight, without the refused ones. From time to time
    one more is tried, and more steps follow as long as nothing is refused.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = 0
        self._part = 1.0  # of what the server takes is for this process, ...
        self._before = 0.0  # ... and so much for those before it
        self._fits = float(min(most, tuning.CONCURRENCY_FIRST))
        self._whole = self._exact = self._fits  # when it was divided last: rounded, and not
        self._searches = True
        self._was_out = False  # it had no part for a while, and others may know more
        self._grow_s = -math.inf  # when it may grow again
        self._step_s = tuning.CONCURRENCY_STEP_S
        self._step = 1.0
        self._cut_s = -math.inf
        self._base = 0  # in flight at the cut
        self._refused = 0  # of these
        # Of the last refusals that showed no limit by themselves: when they were sent, when they
        # came, and until when they keep their place, so that a wave brings no more of them.
        self._doubted: deque[tuple[float, float, float]] = deque(maxlen=tuning.CONCURRENCY_DOUBTED)
        self._doubt_s = -math.inf  # until when the last does
        self._answered = 0  # since the cut or the last probe
        self._fitted = math.inf  # what fitted before refusals came in a row
        self._probed_s = math.inf  # when one more was tried
        self._cost_s = 0.0  # how long a refusal stops the scope
        self._cost = tuning.CONCURRENCY_COST
        self._soon = 0  # waves in a row that came soon after a cut
        self._until_s = -math.inf  # the end of the last hint
        self._lag_s = 0.1  # from sending to the refusal
        self._starts: deque[tuple[float, int]] = deque(maxlen=tuning.CONCURRENCY_STARTS)
        self._sent = 0
        self._random = RandomRefusals(tuning.SURE_IN_FLIGHT_S)

    def restart(self, now_s: float) -> None:
        """Begins again after an outage, whose refusals said nothing about a limit."""
        self._divide(min(self.most, tuning.CONCURRENCY_FIRST))
        self._searches, self._step, self._fitted = True, 1.0, math.inf
        self._grow_s, self._cut_s, self._answered = now_s, now_s, 0
        self._base, self._refused = self.most, 0
        self._random = RandomRefusals(tuning.SURE_IN_FLIGHT_S)

    def set_part(self, part: float, before: float = 0.0) -> None:
        """So much of what the server takes is for this process, and that for those before it."""
        in_all, factor = self._known() / self._part, part / self._part
        is_below = self._fits < 0.9 * self._fitted
        self._part, self._before = part, before
        self._divide(in_all)
        self._fitted = self._fitted * factor if is_below else self._fits
        self._base, self._refused = round(self._base * factor), round(self._refused * factor)

    @property
    def in_all(self) -> float | None:
        """In flight with all processes, as the server takes it; null: not known."""
        if self._searches or self._random.is_usual:
            return None
        return self._known() / self._part

    @property
    def excess(self) -> int:
        """In flight here beyond what may be, since that was lowered."""
        return max(0, self.now - int(self._fits))

    def is_settled(self, now_s: float) -> bool:
        """Whether what the server takes is known, and nothing was refused for a while."""
        held_s = now_s - max(self._cut_s, self._until_s)
        is_near = self._fits >= 0.9 * self._fitted
        return self.in_all is not None and is_near and held_s >= tuning.CONCURRENCY_PROBE_S

    def rejoin(self) -> None:
        """Others have used this process's part for a while: they know more."""
        self._was_out = True

    def follow(self, in_all: float, now_s: float) -> None:
        """Other processes have found that: where this one has not, it goes on from there."""
        knows = self._sent and not self._searches and not self._was_out
        if knows or self._random.is_usual:
            return
        self._searches = self._was_out = False
        self._random.is_known(now_s)
        self._divide(in_all)
        self._fitted, self._step = self._fits, 1.0
        self._cut_s, self._base, self._refused = now_s, self.most, 0
        turn = self._before + self._part  # they try more one after the other
        self._answered = round(tuning.CONCURRENCY_PROBE_ANSWERS * (1 - turn))
        self._grow_s = now_s + tuning.CONCURRENCY_PROBE_S * turn / self._part

    def _known(self) -> float:
        """This process's part, before it was divided into whole ones."""
        return self._exact if self._fits == self._whole else self._fits

    def _divide(self, in_all: float) -> None:
        """The parts of all processes in whole ones add up to so many; each has one at least."""
        first = math.floor(in_all * self._before + tuning.ROUNDED_S)
        last = math.floor(in_all * (self._before + self._part) + tuning.ROUNDED_S)
        self._exact = in_all * self._part
        self._fits = self._whole = max(1.0, min(float(last - first), float(self.most)))

    def verdict(self, need: Need, now_s: float) -> Verdict:
        if now_s < self._doubt_s and self.now:
            doubted = sum(now_s < until_s for _, _, until_s in self._doubted)
            if self.now >= int(self._fits) - doubted:
                return Wait(self._doubt_s)
        if self.now < int(self._fits):
            return GO
        if self.now >= self.most:
            return Wait()
        if now_s < self._grow_s:
            return Wait(self._grow_s)
        if not self._may_grow(now_s):
            return Wait()
        self._grow(now_s)
        return GO if self.now < int(self._fits) else Wait(self._grow_s)

    def started(self, need: Need, now_s: float) -> None:
        self.now += 1
        self._sent += 1
        self._starts.append((now_s, self.now))

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        if finish.kind is ErrorKind.OVERLOADED:
            probed = not self._searches and slot.started_s >= self._probed_s
            is_unsure = slot.started_s <= self._cut_s or self._part < 1
            in_vain = None if is_unsure else not self._searches and not probed
            is_limit = self._random.is_limit(self._sent, self._fits, now_s, in_vain=in_vain)
            if self._random.is_usual:
                self._searches = True
            elif is_limit or probed or slot.started_s <= self._cut_s:
                self._refuse(slot.started_s, finish.hint_s or 0.0, now_s)
            else:
                # Alone, and once a limit was met, there are few of them in any case.
                if self._searches or self._part < 1:
                    lag_s = now_s - slot.started_s
                    self._doubt_s = now_s + min(lag_s, tuning.CONCURRENCY_DOUBT_S)
                self._doubted.append((slot.started_s, now_s, self._doubt_s))
        elif finish.answered and finish.kind is None:
            if slot.started_s > self._cut_s:
                self._answered += not finish.is_retry
            quick_s = tuning.CONCURRENCY_STEP_ANSWERS * (now_s - slot.started_s)
            if quick_s < self._step_s:
                self._step_s = max(tuning.CONCURRENCY_STEP_LEAST_S, quick_s)
        self.now -= 1

    def status(self, now_s: float) -> LimitStatus:
        return LimitStatus(
            "inferred limit on requests in flight", self.now, int(self._fits), of="in flight"
        )

    def _may_grow(self, now_s: float) -> bool:
        if self._searches or self._fits < 0.9 * self._fitted:
            return True
        return self._answered >= tuning.CONCURRENCY_PROBE_ANSWERS or self._step > 1

    def _grow(self, now_s: float) -> None:
        if self._searches or self._fits < 0.9 * self._fitted:
            self._fits = max(self._fits * tuning.CONCURRENCY_STEP, self._fits + 1)
            self._grow_s = now_s + (
                tuning.CONCURRENCY_STEP_RANDOM_S if self._random.is_usual else self._step_s
            )
        else:
            self._fits += self._step
            self._fitted = self._fits
            self._step = min(2 * self._step, max(1.0, 0.15 * self._fits))
            self._answered = 0
            self._probed_s = now_s
            self._grow_s = now_s + max(0.5, 2 * self._lag_s)
        self._fits = min(self._fits, float(self.most))

    def _refuse(self, sent_s: float, hint_s: float, now_s: float) -> None:
        self._lag_s += 0.2 * (now_s - sent_s - self._lag_s)
        if sent_s <= self._cut_s:  # the same wave of refusals
            self._refused += 1
            self._fits = max(1.0, min(self._fits, float(self._base - self._refused)))
            self._fitted = min(self._fitted, max(self._fits, 1.0))
            return
        before = self._fits
        is_soon = now_s - max(self._cut_s, self._until_s) < tuning.CONCURRENCY_SOON_S
        self._soon = self._soon + 1 if is_soon and not self._searches else 0
        self._searches = False
        self._cut_s = now_s
        at_sent = max((count for time_s, count in self._starts if time_s == sent_s), default=0)
        doubted = sum(one_s <= sent_s <= came_s for one_s, came_s, _ in self._doubted)
        self._base, self._refused, self._answered = max(self.now, at_sent - doubted), 1, 0
        steady = abs(self._fits - self._base) <= max(2.0, 0.1 * self._fits)
        self._cost = (
            min(tuning.CONCURRENCY_COST_MOST, self._cost * 1.5)
            if steady
            else tuning.CONCURRENCY_COST
        )
        self._fits = max(1.0, min(self._fits, self._base - 1.0))
        is_blind = self._soon > 1  # what is in flight does not show the limit
        if is_blind:
            self._fits = max(1.0, min(self._fits, tuning.CONCURRENCY_CUT * before))
        if self._fits >= self._fitted / 4 or (doubted and self._fitted == math.inf):
            self._fitted = self._fits
        self._step, self._probed_s = 1.0, math.inf
        self._cost_s += (0.3 if self._cost_s else 1.0) * (hint_s - self._cost_s)
        self._until_s = now_s + hint_s
        cost = tuning.CONCURRENCY_COST_BLIND if is_blind else self._cost
        # All processes together probe as rarely as one.
        least_s = tuning.CONCURRENCY_PROBE_S / self._part
        self._grow_s = self._until_s + max(least_s, cost * self._cost_s)

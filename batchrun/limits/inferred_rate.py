"""The rate that a server accepts, inferred from its refusals if it advertises none. No I/O.

The rate doubles while nothing is refused. Then it stays just below what was measured. From time to
time it rises a little, and faster the longer nothing is refused. If the server advertises its
limits, those apply, and this one lets everything pass.
"""

import math

from batchrun.errors import ErrorKind
from batchrun.limits import tuning
from batchrun.limits.rate import AdvertisedRate, Spacing
from batchrun.limits.rate_estimate import LimitEstimate, RandomRefusals, SentLog
from batchrun.limits.verdicts import GO, LimitStatus, Verdict, Wait
from batchrun.records import Finish, Need, Slot


class InferredRate:
    """Slow start, then plateaus just below the limit, with probes between them."""

    def __init__(self, *advertised: AdvertisedRate) -> None:
        self._advertised = advertised  # the one for requests first
        self._advertised_rate = math.inf  # for requests, as last seen
        self._part = 1.0  # this process's part of what the server accepts
        self._was_out = False  # it had no part for a while, and others may know more
        self._spacing = Spacing(tuning.RATE_FIRST)
        self._estimate = LimitEstimate()
        self._log = SentLog()
        self._random = RandomRefusals()
        self._searches = True  # nothing was refused yet
        self._updated_s = -math.inf
        self._pressed_s = -math.inf  # when an attempt last had to wait
        self._rise_s = math.inf  # when the probe begins
        self._cut_s = -math.inf  # refusals of requests sent before belong to one wave
        self._until_s = -math.inf  # the end of the last hint
        self._doubles_s = tuning.RATE_DOUBLES_S
        self._cost_s = 0.0  # how long a refusal stops the scope
        self._cost = tuning.RATE_COST
        self._lag_s = 0.1  # from sending to the refusal
        self._misses = 0  # waves in a row that refused the very first request after a cut
        self._shut_s: float | None = None  # since when the server has refused everything
        self._shut_refused = 0  # refusals since then
        self._ask_s = 0.0  # when the next request may be tried
        self._asked = False
        self._asked_s = 0.0  # when the last refused one was sent
        self._open: tuple[float, int] | None = (
            None  # when it last accepted again: time, accepted until then
        )

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self._spacing.rate

    def set_part(self, part: float, now_s: float) -> None:
        """Sets this process's part of what the server accepts."""
        factor, self._part = part / self._part, part
        self._spacing.change(self._spacing.rate * factor, now_s)
        self._estimate.scale(factor, self._log.sent)

    @property
    def in_all(self) -> float | None:
        """Requests a second that the server accepts from all processes; None: unknown."""
        if self._advertised and self._advertised[0].rate < math.inf:
            return self._advertised[0].rate
        is_guess = self._searches or self._random.is_usual or self._is_advertised()
        return None if is_guess else self._spacing.rate / self._part

    def is_settled(self, now_s: float) -> bool:
        """Whether that was measured, and what is below it was not refused for a while."""
        if self._is_advertised():
            return True
        held_s = now_s - max(self._cut_s, self._until_s)
        is_known = self.in_all is not None and not self._estimate.is_guess
        is_near = self.rate >= 0.9 * self._estimate.high  # else it will soon be higher
        return is_known and is_near and held_s >= tuning.HOLD_LEAST_S

    def is_limit(self, slot: Slot, finish: Finish, now_s: float) -> bool:
        """Whether a single refusal comes from a limit that is known; asked before it is noted."""
        if finish.kind is not ErrorKind.RATE_LIMIT:
            return False
        if self._is_advertised():
            return not all(one.has_room(slot, finish) for one in self._advertised)
        probes = not self._searches and now_s >= self._rise_s
        return not self._random.is_usual and (probes or self._random.is_sure(now_s))

    def rejoin(self) -> None:
        """Others have used this process's part for a while: what it has measured is of before."""
        self._was_out = True
        self._estimate.forget()

    def follow(self, in_all: float, now_s: float) -> None:
        """Takes the rate that other processes inferred, unless this one has its own."""
        knows = self._log.sent and not self._searches and not self._was_out
        if knows or self._random.is_usual or self._is_advertised():
            return
        self._searches = self._was_out = False
        self._cut_s = now_s
        self._estimate.forget()
        self._estimate.set(in_all * self._part)
        self._random.is_known(now_s)
        self._plateau(in_all * self._part, 0.0, now_s)

    def verdict(self, need: Need, now_s: float) -> Verdict:
        until_s = self._spacing.next_s if self._shut_s is None else self._ask_s
        if until_s <= now_s + tuning.EARLY_S:
            return GO
        self._pressed_s = now_s
        return Wait(until_s)

    def started(self, need: Need, now_s: float) -> None:
        self._log.add(now_s)
        if self._shut_s is not None:
            self._ask(now_s)
        self._grow(now_s)
        self._spacing.start(1.0, now_s)

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        if finish.kind is ErrorKind.RATE_LIMIT and not self._is_advertised():
            self._refuse(slot.started_s, finish.hint_s or 0.0, now_s)
        elif self._searches and finish.kind is None and finish.answered:
            quick_s = tuning.RATE_DOUBLES_ANSWERS * (now_s - slot.started_s)
            if quick_s < self._doubles_s:
                self._doubles_s = max(tuning.RATE_DOUBLES_LEAST_S, quick_s)
        if finish.advertised and self._advertised:
            self._follow_headers(self._advertised[0], now_s)

    def _follow_headers(self, advertised: AdvertisedRate, now_s: float) -> None:
        least = advertised.least_rate * self._part
        if self._searches and least > self._spacing.rate:
            least *= tuning.BELOW_ADVERTISED
            self._spacing.change(max(least, self._spacing.rate), now_s)
        # A rate that makes the rest of an hour last is none of the next hour.
        if advertised.rate != self._advertised_rate and not advertised.is_spread:
            self._jump(advertised.rate, now_s)

    def status(self, now_s: float) -> LimitStatus:
        if self._searches:
            return LimitStatus("inferred rate")
        rate = self._spacing.rate
        return LimitStatus("inferred rate", None, rate * 60, of="requests", per_s=rate)

    def _is_advertised(self) -> bool:
        return any(one.rate < math.inf for one in self._advertised)

    def _jump(self, rate: float, now_s: float) -> None:
        """Goes to just above the advertised rate, which then applies."""
        self._advertised_rate = rate
        if rate == math.inf:
            return
        self._searches = False
        self._cut_s = now_s
        self._estimate.high = rate * self._part * tuning.ABOVE_ADVERTISED
        self._rise_s = now_s + tuning.HOLD_LEAST_S
        self._spacing.change(self._estimate.high, now_s)

    def _grow(self, now_s: float) -> None:
        if now_s == self._updated_s:  # the loop's clock stands still during one turn
            return
        since_s = min(now_s - self._updated_s, tuning.USED_S)
        self._updated_s = now_s
        rate = self._spacing.rate
        if now_s - self._pressed_s > tuning.USED_S + 1 / rate or now_s < self._until_s:
            return
        if self._searches:
            is_random = self._random.is_usual
            rate *= math.exp2(
                since_s / (tuning.RATE_DOUBLES_RANDOM_S if is_random else self._doubles_s)
            )
        elif now_s >= self._rise_s:
            rate *= math.exp(self._slope(rate) * since_s)
        else:
            return
        self._spacing.change(min(rate, tuning.RATE_MOST), now_s)

    def _slope(self, rate: float) -> float:
        """Fast if far below the refused rate, slow near it, and faster and faster above it."""
        beyond = math.log(rate / self._estimate.high)
        if beyond < -tuning.NEAR:
            return tuning.SLOPE + (-tuning.NEAR - beyond) / tuning.CLOSES_S
        if beyond < tuning.NEAR:
            return tuning.SLOPE
        steep = min(tuning.GROWS, max(0.15, rate / self._part / 20))
        return tuning.SLOPE + steep * (beyond - tuning.NEAR)

    def _refuse(self, sent_s: float, hint_s: float, now_s: float) -> None:
        is_first = not self._log.refused
        self._lag_s += (1.0 if is_first else 0.2) * (now_s - sent_s - self._lag_s)
        self._log.refuse(sent_s)
        self._estimate.refused(sent_s)
        probes = not self._searches and now_s >= self._rise_s
        is_old = sent_s <= self._cut_s or self._shut_s is not None
        # If this is one of several processes, others may have tried more meanwhile.
        is_unsure = is_old or self._part < 1
        in_vain = None if is_unsure else not self._searches and not probes
        is_limit = self._random.is_limit(self._log.sent, self.rate, now_s, in_vain=in_vain)
        if self._random.is_usual:
            self._searches = True
            return
        if (not is_limit and not probes) or sent_s <= self._cut_s:
            return
        opened_s = max(self._cut_s, self._until_s)
        self._cut_s = now_s
        if self._shut_s is not None:
            self._shut(sent_s, now_s)
            return
        rate = self._spacing.rate
        missed = sent_s - opened_s < max(0.5 * self._lag_s, 1.5 / rate)
        self._misses = self._misses + 1 if missed else 0
        if self._misses >= 2 and not hint_s and self._log.sent >= tuning.HANDFUL:
            self._shut(sent_s, now_s)
            return
        estimate = self._estimate
        seen = estimate.measure(self._log, rate, sent_s, hint_s, self._lag_s, now_s)
        if self._searches:
            self._searches = False
            found = estimate.first(seen)
        elif probes:
            is_steady = abs(rate / estimate.high - 1) < 0.1
            self._cost = (
                min(tuning.RATE_COST_MOST, self._cost * 1.5) if is_steady else tuning.RATE_COST
            )
            found = estimate.probed(seen)
        else:
            found = estimate.early(seen)
        self._plateau(min(found, rate) * tuning.HOLD, hint_s, now_s)

    def _plateau(self, rate: float, hint_s: float, now_s: float) -> None:
        # After a handful of requests nothing is known, and a small run should not wait for it.
        is_handful = self._log.sent < tuning.HANDFUL * self._part
        rate = max(rate, tuning.HANDFUL_RATE * self._part if is_handful else tuning.RATE_LEAST)
        self._cost_s += (0.3 if self._cost_s else 1.0) * (hint_s - self._cost_s)
        # Several processes together should get as few refusals as one.
        hold_least_s = tuning.HOLD_LEAST_S / self._part
        requests_s = min(tuning.HOLD_REQUESTS / rate, tuning.HOLD_MOST_S / self._part)
        cost_s = max(
            min(self._cost * self._cost_s, tuning.RATE_COST_MOST_S),
            tuning.RATE_COST_LEAST * self._cost_s,
        )
        hold_s = max(hold_least_s, requests_s, cost_s)
        if rate < 0.9 * self._estimate.high:
            least_s = 1.0 if self._estimate.is_guess else hold_least_s
            hold_s = min(hold_s, max(least_s, 30 / rate))
        if hint_s == round(hint_s):  # rounded up: so much of the stop may be unneeded
            self._estimate.unsure(min(hint_s, 1.0))
        self._until_s = now_s + hint_s
        self._rise_s = self._until_s + hold_s
        self._spacing.change(rate, now_s)

    def _shut(self, sent_s: float, now_s: float) -> None:
        """The server refuses everything, whatever the rate: one request is tried now and then."""
        if self._shut_s is None:
            self._shut_s = sent_s
            self._shut_refused = 0
        self._shut_refused += 1
        self._asked = False
        self._asked_s = sent_s
        self._ask_s = now_s + max(self._lag_s, 0.1 * (now_s - self._shut_s))

    def _ask(self, now_s: float) -> None:
        """One request goes out; if no refusal is back when the next may go, the server accepts."""
        if not self._asked:
            self._asked = True
            self._ask_s = now_s + 2.5 * self._lag_s
            return
        self._estimate.unsure(now_s - self._asked_s)
        if self._shut_refused > 1:
            self._reopen(now_s)
        self._shut_s, self._asked, self._misses = None, False, 0
        self._spacing.next_s = now_s

    def _reopen(self, now_s: float) -> None:
        """Measures from one opening to the next: exact if windows open at fixed times."""
        let_in = self._log.sent - self._log.refused
        if self._open is not None:
            since_s, before = now_s - self._open[0], self._open[1]
            if let_in - before < tuning.ENOUGH:
                return
            mean = (let_in - before) / since_s
            if mean < self._spacing.rate:
                self._estimate.set(mean)
                self._plateau(mean * tuning.HOLD, 0.0, now_s)
        self._open = now_s, let_in

"""Estimates a server's limit from its refusals, and tells these from random refusals. No I/O.

Above a limit a considerable share is refused; below it nothing is. So a single refusal among many
answers says nothing, unless a wave has recently shown that there is a limit. Refusals that continue
although the limit was lowered again and again are random: a share of all requests, whatever is
sent. To mistake them for a limit would be worst if each of them stops everything for a while.

A refusal says that the server had nothing left when the refused request was sent. Between two such
moments, the requests sent and not refused, divided by the time, are the limit, or less if the
server could not save what was not used. The rate at which it refused is the limit, or more if much
had been saved. Later refusals show which of the two is closer.
"""

import itertools
import math
from collections import deque

from msgspec import Struct

from batchrun.limits import tuning


class SentLog:
    """Counts of requests by the time they were sent."""

    def __init__(self) -> None:
        self.sent = 0
        self.refused = 0
        # Time, sent before, refused of those in it.
        self._ticks: deque[list[float]] = deque(maxlen=tuning.TICKS)

    def add(self, now_s: float) -> None:
        if not self._ticks or now_s - self._ticks[-1][0] >= tuning.TICK_S:
            self._ticks.append([now_s, self.sent, 0])
        self.sent += 1

    def refuse(self, sent_s: float) -> None:
        """Notes a refusal of a request that was sent at that time."""
        self.refused += 1
        for tick in reversed(self._ticks):
            if tick[0] <= sent_s:
                tick[2] += 1
                return

    def until(self, known_s: float) -> tuple[int, int]:
        """How many were sent until then, and how many of those sent later were refused."""
        sent, refused = self.sent, 0
        for tick in reversed(self._ticks):
            if tick[0] <= known_s:
                break
            sent = int(tick[1])
            refused += int(tick[2])
        return sent, refused


class RefusedShare:
    """Tells from each refusal whether the share that is refused has become large.

    A sequential test of two shares, 0 < `usual` < `large` < 1. The evidence for the larger is the
    sum of the logarithms of the likelihood ratio of each attempt, and never below 0. So a few
    refusals in a row suffice, and the usual share passes for the larger at most once in about
    `exp(evidence)` attempts.
    """

    def __init__(self, evidence: float = tuning.EVIDENCE, *, begins_large: bool = False) -> None:
        """`begins_large`: a refusal before there are answers is enough."""
        self._enough = evidence
        self._evidence = evidence if begins_large else 0.0
        self._sent = 0  # attempts before the last refusal

    def is_large(
        self, sent: int, usual: float = tuning.SMALL_SHARE, large: float = tuning.LARGE_SHARE
    ) -> bool:
        """Whether it is large, at a refusal after `sent` attempts."""
        answered, self._sent = max(0, sent - self._sent - 1), sent
        answers = answered * math.log((1 - large) / (1 - usual))
        evidence = max(0.0, self._evidence + answers) + math.log(large / usual)
        self._evidence = min(evidence, self._enough + 1.0)
        return evidence >= self._enough


class RandomRefusals:
    """Tells random refusals from those of a limit; called at each refusal."""

    def __init__(self, sure_s: float = tuning.SURE_S) -> None:
        """`sure_s`: for how long a wave is remembered."""
        # Attempts sent before each of the last refusals.
        self._recent: deque[int] = deque(maxlen=tuning.HEARD)
        self._wave = RefusedShare()
        self._sure_for_s = sure_s
        self._sure_s = -math.inf
        self._in_vain = 0
        self._in_vain_sent = 0  # attempts sent when that began
        self._in_vain_level = 0.0
        self._falls = 0  # how often the level fell far since then
        self._fall_level = 0.0
        self._usual: float | None = None  # the share that is refused at random
        self._most = 1.0  # a share above this is a limit in any case
        self._last_s = 0.0
        self._barred_s = 0.0

    @property
    def is_usual(self) -> bool:
        """Whether refusals are known to be random: a share of all, whatever is sent."""
        return self._usual is not None

    def is_sure(self, now_s: float) -> bool:
        """Whether a single refusal comes from a limit, as a wave has shown lately."""
        return now_s - self._sure_s < self._sure_for_s

    def is_known(self, now_s: float) -> None:
        """Notes that other processes have met a limit."""
        self._sure_s = now_s

    def is_limit(self, sent: int, level: float, now_s: float, *, in_vain: bool | None) -> bool:
        """Whether a refusal comes from a limit, after `sent` attempts.

        `level` is the limit as inferred so far, in any unit.
        `in_vain`: the limit was lowered, and nothing above it has been tried since; None if this
        cannot be said, as for requests that were sent before the limit was lowered.
        """
        recent = self._recent
        recent.append(sent)
        if self._usual is not None and now_s - self._last_s > tuning.RANDOM_S:
            self._usual = None
        self._last_s = now_s
        is_wave = self._wave.is_large(sent)
        if self._usual is not None:
            share, usual = self._share(sent), self._usual
            by_chance = usual + tuning.DEVIATIONS * math.sqrt(usual / tuning.RECENT_SENT)
            most = min(max(tuning.TIMES * usual, usual + tuning.MORE, by_chance), self._most)
            if share <= most and not self._is_even():
                self._usual += tuning.LEARN * (share - usual)
                return False
            self._usual, self._in_vain, self._barred_s = None, 0, now_s + tuning.BARRED_S
            return True
        if is_wave:
            self._sure_s = now_s
        if not self.is_sure(now_s):
            return False
        if in_vain and self._is_usual_by_now(sent, level, now_s):
            return False
        if in_vain is False:
            self._in_vain = max(0, self._in_vain - 1)
            self._falls = max(0, self._falls - 1)
        return True

    def _is_usual_by_now(self, sent: int, level: float, now_s: float) -> bool:
        if not self._in_vain:
            self._in_vain_sent, self._in_vain_level = sent, level
            self._falls, self._fall_level = 0, level
        self._in_vain += 1
        if level <= tuning.FALL * self._fall_level:
            self._falls, self._fall_level = self._falls + 1, level
        share = self._in_vain / max(1, sent - self._in_vain_sent)
        is_few = share <= tuning.FEW
        is_lower = level <= tuning.LOWER * self._in_vain_level
        is_enough = (self._in_vain >= tuning.IN_VAIN and is_lower) or (
            self._falls >= tuning.FALLS and is_few
        )
        if not is_enough or now_s < self._barred_s:
            return False
        spread = 1 + tuning.SPREAD / math.sqrt(self._in_vain)
        self._in_vain = 0
        if share > tuning.MOST_RANDOM:
            return False
        self._usual, self._most = (share * spread, tuning.FEW_MOST) if is_few else (share, 1.0)
        return True

    def _share(self, sent: int) -> float:
        return sum(sent - one < tuning.RECENT_SENT for one in self._recent) / tuning.RECENT_SENT

    def _is_even(self) -> bool:
        """Whether refusals come at even gaps, counted in attempts; a wave counts as one."""
        waves = sorted(set(self._recent))[-tuning.GAPS - 1 :]
        if len(waves) <= tuning.GAPS:
            return False
        mean = (waves[-1] - waves[0]) / tuning.GAPS
        gaps = (after - before for before, after in itertools.pairwise(waves))
        return sum((gap - mean) ** 2 for gap in gaps) / tuning.GAPS < (tuning.EVEN * mean) ** 2


class Measured(Struct, frozen=True):
    """What the server accepted from one refusal to the first of the next wave."""

    rate: float  # the rate when the refused one was sent
    count: int
    span_s: float
    mean: float
    is_unsure: bool  # too much of the span may have been unused
    is_enough: bool  # enough requests to trust the mean
    is_long: bool  # the span is long compared with the lag of refusals
    known_s: float  # for requests sent until then, it is known which were refused
    end_s: float  # until when the server had nothing left
    sent: int  # until `known_s`
    refused: int  # of what was sent later


class LimitEstimate:
    """What is known about one limit; rates are in requests a second.

    Each refusal that begins a wave is measured. Then it is reported as the first of all, as an
    early one (on the plateau), or as one of a probe. Each report returns the next rate.
    """

    def __init__(self) -> None:
        self.high = math.inf  # the rate that was refused last, or probably would be
        self.is_blind = True  # nothing was measured yet
        self.is_guess = True  # the latest estimate rests on no measure
        self._is_shared = False  # what others send is refused, too, and they lower it as well
        self._low = 0.0  # a rate that the server surely accepts
        self._empty_s = -math.inf  # when the server last had nothing left
        self._mark_s = -math.inf  # the same, or the end of the hint
        self._sent = 0  # requests sent until then
        self._refused = 0  # refusals of what was sent since then
        self._unsure_s = 0.0  # time since then that may have been unused at the server
        self._early = 0  # refusals in a row that came before a probe
        # Weight of the rate at a refusal, against the mean since the last one.
        self._trust = tuning.TRUST
        self._trusted = False  # the present rate used `_trust`
        self._doubts = False  # unsure whether the limit rose

    def refused(self, sent_s: float) -> None:
        """Notes a refusal of a request that was sent at that time."""
        if sent_s > self._empty_s:
            self._refused += 1

    def unsure(self, span_s: float) -> None:
        """Notes a time in which nothing was sent, though something could have been."""
        self._unsure_s += span_s

    def scale(self, factor: float, sent: int) -> None:
        """Scales the rates of this process by a factor; `sent`: by it so far."""
        self._is_shared = self._is_shared or factor < 1
        self._low, self.high = self._low * factor, self.high * factor
        self._sent = sent - round((sent - self._sent) * factor)
        self._refused = round(self._refused * factor)

    def forget(self) -> None:
        """What was let in so far says nothing: the next measure begins with the next refusal."""
        self._mark_s, self._early = -math.inf, 0

    def set(self, rate: float) -> None:
        """Sets a rate that was measured in another way."""
        self.is_blind = self.is_guess = False
        self._low, self.high = rate, max(rate * tuning.ABOVE, tuning.RATE_LEAST)

    def measure(
        self, log: SentLog, rate: float, sent_s: float, hint_s: float, lag_s: float, now_s: float
    ) -> Measured:
        """Measures until the refusal that begins a wave; a refusal comes `lag_s` after sending."""
        # For what was sent after this, it is not known yet whether it is refused.
        known_s = sent_s if hint_s else min(sent_s, now_s - 1.5 * lag_s)
        sent, refused = log.until(known_s)
        count = max(0, sent - self._sent - (self._refused - refused))
        # A hint says until when the server has nothing left. From one such end to the next is exact
        # too, also for windows that open at fixed times.
        rounded_s = min(hint_s, 0.5) if hint_s == round(hint_s) else 0.0
        end_s = now_s + hint_s - rounded_s if hint_s else known_s
        span_s = max(end_s - self._mark_s, 1e-3)
        return Measured(
            rate=rate,
            count=count,
            span_s=span_s,
            mean=count / (span_s - 0.5 * min(self._unsure_s, tuning.UNSURE * span_s)),
            is_unsure=self._unsure_s > tuning.UNSURE * span_s,
            is_enough=count >= tuning.ENOUGH and max(0.3, 3 * lag_s) < span_s < math.inf,
            is_long=3 * lag_s < span_s < math.inf,
            known_s=known_s,
            end_s=end_s,
            sent=sent,
            refused=refused,
        )

    def first(self, seen: Measured) -> float:
        """After the first refusal of all, which was sent far above the limit."""
        return self._begin_anew(seen, 0.5 * seen.rate, seen.rate)

    def early(self, seen: Measured) -> float:
        """After a refusal on the plateau: the plateau is too high, or the limit fell."""
        rate, mean = seen.rate, seen.mean
        self._early += 1
        if self._trusted:
            self._trust = max(0.0, self._trust - tuning.DISTRUST)
            self._trusted = False
        doubts, self._doubts = self._doubts, False
        if seen.is_enough and not seen.is_unsure:
            self.is_blind = False
            self._early = 1 if self._is_shared else self._early
            self._low = min(max(mean, 0.98 * rate), rate) if mean > 0.9 * rate else mean
            return self._begin_anew(seen, self._low, self._low * tuning.ABOVE)
        self.high = rate
        if seen.span_s == math.inf:  # as others have measured: what is measured here begins now
            self._begin_anew(seen, rate, rate)
        if self._early <= 2 and self._low:
            low = min(self._low, rate)
            return math.sqrt(low * rate) if doubts else (low + rate) / 2
        self._low = 0.0
        self.is_guess = True
        steps = 1 if self._is_shared else min(self._early, 3)
        estimate = rate * (0.6 if self.is_blind else 1 - 0.1 * steps)
        if seen.is_enough:  # so much was let in at least
            estimate = max(estimate, (seen.count - math.sqrt(seen.count)) / seen.span_s)
        if seen.is_long and not seen.is_unsure:
            estimate = min(estimate, max((seen.count + 2) / seen.span_s, 0.3 * rate))
        return estimate

    def probed(self, seen: Measured) -> float:
        """After the refusal of a probe: the limit is between the mean and the probe's rate."""
        rate, mean = seen.rate, seen.mean
        self._early, self.is_blind = 0, False
        if rate > 0.97 * self.high:
            self._trust = min(tuning.TRUST_MOST, self._trust + tuning.MORE_TRUST)
        elif self._trusted:
            self._trust = max(0.0, self._trust - tuning.DISTRUST)
        self._trusted = False
        if rate > 1.2 * self.high:  # the limit rose, or much had been saved
            self._low = min(mean, rate) if seen.is_enough else 0.0
            self._doubts = True
            return self._begin_anew(seen, math.sqrt(max(self._low, 0.3 * rate) * rate), rate)
        if not seen.is_enough:
            return self._begin_anew(seen, 0.95 * rate, rate)
        self._trusted = True
        self._low = min(mean, rate)
        estimate = mean + self._trust * max(rate - mean, 0.0)
        estimate = min(estimate, mean * (1.4 if seen.is_unsure else 1.15))
        return self._begin_anew(seen, estimate, min(rate, estimate * tuning.ABOVE))

    def _begin_anew(self, seen: Measured, estimate: float, high: float) -> float:
        """Begins the next measurement where this one ended; returns `estimate`."""
        self._empty_s, self._mark_s = seen.known_s, seen.end_s
        self.is_guess = self.is_blind
        self._sent, self._refused = seen.sent, seen.refused
        self._unsure_s = 0.0
        self.high = max(high, tuning.RATE_LEAST)
        return estimate

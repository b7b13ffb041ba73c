"""A server's limit, from what it refuses. Pure.

A refusal says that the server had nothing left when the refused request was sent. So what was
sent between two such instants and not refused, over the time between, is the limit, or less than
it where the server could not keep what was not used. The rate at which it refused is the limit,
or more than it where much had been saved up. Which of the two is nearer shows by what follows.
"""

import math

from msgspec import Struct

from batchrun.policy.sent_log import SentLog

_ENOUGH = 20  # requests between two refusals that make an estimate
_ABOVE = 1.02  # an estimate is refused that far above it
_UNSURE = 0.25  # of the time between two refusals: so much may be lost to rounded hints
_TRUST = 0.5  # at first
_TRUST_MOST = 0.85
_MORE_TRUST = 0.15
_DISTRUST = 0.34
_LEAST = 0.02  # requests a second


class Measured(Struct, frozen=True):
    """What was let in from one refusal to the first of the next wave."""

    rate: float  # at which the refused one was sent
    count: int
    span_s: float
    mean: float
    is_unsure: bool  # too much of the span may have gone unused
    is_enough: bool  # to believe the mean
    is_long: bool  # against what is under way
    known_s: float  # the fate of all that was sent until then is known
    end_s: float  # until when there was nothing
    sent: int  # until `known_s`
    refused: int  # of what was sent later


class Estimate:
    """What is known of one limit; rates are in requests a second.

    Each refusal that begins a wave is measured, and then told as the first of all, as one that
    came early (on the plateau) or as one that a probe met; each gives the rate to go on with.
    """

    def __init__(self) -> None:
        self.high = math.inf  # what was refused last, or is likely to be
        self.is_blind = True  # nothing was measured yet
        self._low = 0.0  # what the server surely takes
        self._empty_s = -math.inf  # when the server was known to have nothing left
        self._mark_s = -math.inf  # the same, or until when a hint said so
        self._sent = 0  # until then
        self._refused = 0  # of what was sent since then
        self._unsure_s = 0.0  # of the time since then: it may have gone unused at the server
        self._early = 0  # refusals in a row that came before a probe
        self._trust = _TRUST  # in the rate at a refusal, against the mean since the one before
        self._trusted = False  # the rate rests on it
        self._doubts = False  # whether the limit rose

    def refused(self, sent_s: float) -> None:
        """One more refusal, of what was sent then."""
        if sent_s > self._empty_s:
            self._refused += 1

    def unsure(self, span_s: float) -> None:
        """For so long nothing was sent, though something might have been."""
        self._unsure_s += span_s

    def set(self, rate: float) -> None:
        """Measured in another way."""
        self._low, self.high = rate, max(rate * _ABOVE, _LEAST)

    def measure(
        self, log: SentLog, rate: float, sent_s: float, hint_s: float, lag_s: float, now_s: float
    ) -> Measured:
        """Until the refusal that begins a wave; refusals are back `lag_s` after they were sent."""
        # The fate of what was sent since then is not known yet.
        known_s = sent_s if hint_s else min(sent_s, now_s - 1.5 * lag_s)
        sent, refused = log.until(known_s)
        count = max(0, sent - self._sent - (self._refused - refused))
        # A hint says until when there is nothing: from one such end to the next is exact too, and
        # holds for windows that open at fixed times as well.
        rounded_s = min(hint_s, 0.5) if hint_s == round(hint_s) else 0.0
        end_s = now_s + hint_s - rounded_s if hint_s else known_s
        span_s = max(end_s - self._mark_s, 1e-3)
        return Measured(
            rate=rate,
            count=count,
            span_s=span_s,
            mean=count / (span_s - 0.5 * min(self._unsure_s, _UNSURE * span_s)),
            is_unsure=self._unsure_s > _UNSURE * span_s,
            is_enough=count >= _ENOUGH and max(0.3, 3 * lag_s) < span_s < math.inf,
            is_long=span_s > 3 * lag_s,
            known_s=known_s,
            end_s=end_s,
            sent=sent,
            refused=refused,
        )

    def first(self, seen: Measured) -> float:
        """After the first refusal of all: it was sent at far more than the limit."""
        return self._settle(seen, 0.5 * seen.rate, seen.rate)

    def early(self, seen: Measured) -> float:
        """After a refusal on the plateau: that is above the limit, or the limit fell."""
        rate, mean = seen.rate, seen.mean
        self._early += 1
        if self._trusted:
            self._trust = max(0.0, self._trust - _DISTRUST)
            self._trusted = False
        doubts, self._doubts = self._doubts, False
        if seen.is_enough and not seen.is_unsure:
            self.is_blind = False
            self._low = min(max(mean, 0.98 * rate), rate) if mean > 0.9 * rate else mean
            return self._settle(seen, self._low, self._low * _ABOVE)
        self.high = rate
        if self._early <= 2 and self._low:
            low = min(self._low, rate)
            return math.sqrt(low * rate) if doubts else (low + rate) / 2
        self._low = 0.0
        estimate = rate * (0.6 if self.is_blind else 1 - 0.1 * min(self._early, 3))
        if seen.is_long and not seen.is_unsure:
            estimate = min(estimate, max((seen.count + 2) / seen.span_s, 0.3 * rate))
        return estimate

    def probed(self, seen: Measured) -> float:
        """After a refusal that a probe met: somewhere between the mean and its rate."""
        rate, mean = seen.rate, seen.mean
        self._early, self.is_blind = 0, False
        if rate > 0.97 * self.high:
            self._trust = min(_TRUST_MOST, self._trust + _MORE_TRUST)
        elif self._trusted:
            self._trust = max(0.0, self._trust - _DISTRUST)
        self._trusted = False
        if rate > 1.2 * self.high:  # the limit rose, or much had been saved up
            self._low = min(mean, rate) if seen.is_enough else 0.0
            self._doubts = True
            return self._settle(seen, math.sqrt(max(self._low, 0.3 * rate) * rate), rate)
        if not seen.is_enough:
            return self._settle(seen, 0.95 * rate, rate)
        self._trusted = True
        self._low = min(mean, rate)
        estimate = mean + self._trust * max(rate - mean, 0.0)
        estimate = min(estimate, mean * (1.4 if seen.is_unsure else 1.15))
        return self._settle(seen, estimate, min(rate, estimate * _ABOVE))

    def _settle(self, seen: Measured, estimate: float, high: float) -> float:
        """The next measure begins where this one ended."""
        self._empty_s, self._mark_s = seen.known_s, seen.end_s
        self._sent, self._refused = seen.sent, seen.refused
        self._unsure_s = 0.0
        self.high = max(high, _LEAST)
        return estimate

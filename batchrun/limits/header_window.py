"""The limit of one header: which window it is for, and the rate that follows. No I/O.

If nothing names the window, it is inferred from what remains and from the time until the limit is
full again: a bucket that fills within a minute, a window that ends within a minute, or something
shorter or longer. A limit whose window is not known gives no rate; the rate is then inferred.
"""

import math

from batchrun.limits import tuning
from batchrun.records import AdvertisedLimit


class HeaderWindow:
    """The limit that one header advertises."""

    def __init__(self, *, is_by_second: bool) -> None:
        """`is_by_second`: some servers mean this limit a second, and do not say so."""
        self._is_by_second = is_by_second
        self._begin(0.0)

    def _begin(self, limit: float) -> None:
        self.limit = limit
        self.unit_s = tuning.MINUTE_S  # the window; infinite if the limit gives no rate
        self._spread = 1.0  # factor on a long window's even rate, so that the rest lasts to its end
        self.full_s = math.inf  # when a long window is full again, as the last answer says
        self._is_named = False
        self._fullest = 0.0  # the most that has ever remained
        # The share of `_fullest` that remains; None if that says too little.
        self._stock: float | None = None
        self._is_long = self._is_minute = self._is_second = False
        self._longest_s: float | None = None  # the longest time until full; None: never given
        self._least_s = math.inf  # the least time to fill it whole, by the last answer
        # Of the previous answer: what was used, seconds until full, its time.
        self._before: tuple[float, float, float] | None = None
        self._refills = 0  # how often it filled far faster than in a minute
        self._fills = 0  # answers in a row with more used and a longer time until full
        self._agree = 0  # answers in a row that look like a limit a second
        self._agree_from_s = 0.0

    def update(self, said: AdvertisedLimit, limit: float, now_s: float) -> None:
        if limit != self.limit:
            self._begin(limit)
        if said.remaining is not None:
            self._fullest = max(self._fullest, said.remaining)
            if self._fullest >= max(tuning.FULL_LEAST, tuning.FULL_SHARE * limit):
                self._stock = max(said.remaining, 0.0) / self._fullest
        if said.window_s is not None:
            self._is_named = True
            self._follow(said, said.window_s, now_s)
        elif not self._is_named and said.reset_s is not None and said.remaining is not None:
            self._longest_s = max(self._longest_s or 0.0, said.reset_s)
            if said.remaining < limit:
                self._look(max(said.remaining, 0.0), said.reset_s, now_s)
            self.unit_s = self._inferred_s()

    def refill(self, now_s: float) -> None:
        """A long window has ended: until an answer says what remains, its even rate holds."""
        self._spread, self.full_s = 1.0, now_s + self.unit_s

    def has_room(self, said: AdvertisedLimit | None, amount: float) -> bool:
        """Whether enough remained for a request of this amount that was refused.

        `said`: this limit, as the refusal gives it; null: as the last answer did.
        """
        stock = self._stock
        if stock is None:
            return False
        if said is not None and said.remaining is not None:
            stock = min(stock, max(said.remaining, 0.0) / self._fullest)
        return stock >= max(tuning.ROOM, tuning.ROOM_REQUESTS * amount / self._fullest)

    @property
    def rate(self) -> float:
        """The rate a second; infinite if the limit gives none."""
        return self.limit / self.unit_s * self._spread if self.unit_s < math.inf else math.inf

    @property
    def is_spread(self) -> bool:
        """Whether the rate is what remains, by the time that it must last."""
        return tuning.LONG_WINDOW_S < self.unit_s < math.inf

    @property
    def least_rate(self) -> float:
        """The least rate a second, if the window is unknown but at most a minute; else 0."""
        is_short = self.unit_s == math.inf and not self._is_long and self._least_s <= 62
        return self.limit / tuning.MINUTE_S if is_short else 0.0

    @property
    def factor(self) -> float:
        """A factor on the rate, so that what remains is used slowly and never fully."""
        if self.unit_s < tuning.SHORT_WINDOW_S and not self._is_second:
            return tuning.BELOW_SHORT
        if self._stock is None or self.unit_s > tuning.LONG_WINDOW_S:
            return tuning.BELOW_ADVERTISED
        return tuning.EMPTY_FACTOR + tuning.FULL_FACTOR * self._stock

    def _follow(self, said: AdvertisedLimit, window_s: float, now_s: float) -> None:
        """Follows a named window.

        A long one gives no rate until half of it is used; then the rest must last to its end.
        """
        if window_s <= tuning.LONG_WINDOW_S:
            self.unit_s = window_s
            return
        share = 1.0 if said.remaining is None else max(said.remaining, 0.0) / self.limit
        self.unit_s = window_s if share <= tuning.SPREAD_SHARE else math.inf
        left_s = window_s if said.reset_s is None else min(max(said.reset_s, 1.0), window_s)
        self._spread = max(share * window_s / left_s, tuning.SPREAD_LEAST)
        self.full_s = now_s + left_s

    def _look(self, remaining: float, reset_s: float, now_s: float) -> None:
        """Learns about the window from one answer."""
        used = self.limit - remaining
        before = self._before or (used, reset_s, now_s)
        grows = (used - before[0]) * (reset_s - before[1])
        self._fills = self._fills + 1 if grows > 0 else 0 if grows < 0 else self._fills
        refilled, minutes = before[0] - used, (now_s - before[2]) / tuning.MINUTE_S
        if self._was_full and refilled > self.limit * max(0.2, 3 * minutes):
            self._refills += 1
        self._before = (used, reset_s, now_s)
        # The time to fill it whole; servers round times to seconds or milliseconds.
        error_s = 1.0 if reset_s.is_integer() else 0.001
        whole_s = reset_s / used * self.limit
        least_s = self._least_s = whole_s / reset_s * (reset_s - error_s) if reset_s else 0.0
        most_s = math.inf
        if used > 1:
            most_s = (reset_s + error_s) / (used - 1) * self.limit
        is_bucket = self._fills >= tuning.FILLS and self._was_full
        if whole_s > 90 and (reset_s > 61 or (is_bucket and least_s > 90)):
            self._is_long = True  # an hour or a day
        elif is_bucket and least_s < 62 and 58 < most_s < 180:
            self._is_minute = True
        elif most_s < 20:
            self._is_minute = False
        if used < 0.5 * self.limit and 0.5 < whole_s < 2:
            if not self._agree:
                self._agree_from_s = now_s
            self._agree += 1
            if (
                self._agree >= tuning.PER_SECOND_ANSWERS
                and now_s - self._agree_from_s >= tuning.PER_SECOND_S
            ):
                self._is_second = True
        elif whole_s > 20:
            self._agree = 0
            self._is_second = self._is_second and reset_s <= 2

    @property
    def _was_full(self) -> bool:
        """Whether it was ever almost full; a small bucket never is."""
        return self._fullest >= min(self.limit - 1, 0.9 * self.limit)

    def _inferred_s(self) -> float:
        if self._is_long:
            return math.inf
        if self._is_second:
            return 1.0
        if not (self._was_full and self._is_by_second) or self._is_minute:
            return tuning.MINUTE_S
        # Until a bucket or a window is seen, a limit that is soon full again gives no rate.
        longest_s = self._longest_s or 0.0
        if longest_s > tuning.SOON_FULL_S and self._fills == 0:
            return tuning.MINUTE_S
        return 1.0 if longest_s <= 1 and self._refills >= tuning.REFILLS else math.inf

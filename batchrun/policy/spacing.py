"""Starts spread evenly over time, at a rate that may change. Pure: the time is an argument.

What is started is paid for afterwards: the next start comes when all before it are paid, so that
a large one is never overtaken for ever by small ones. Late timers are made up for, a little.
"""

LATE_S = 0.05  # loop clocks tick in milliseconds, and timers come late
EARLY_S = 0.0005  # timers of less than that are none: the loop would spin


class Spacing:
    """When the next start may come."""

    __slots__ = ("_returned_s", "_tolerance_s", "next_s", "rate")

    def __init__(self, rate: float, tolerance_s: float = LATE_S) -> None:
        self.rate = rate  # a second
        self.next_s = 0.0  # from here on all that was started is paid for
        self._tolerance_s = tolerance_s
        self._returned_s = 0.0  # of what is behind `next_s`, returned and not idled away

    def is_due(self, now_s: float) -> bool:
        return self.next_s <= now_s + EARLY_S

    def start(self, amount: float, now_s: float) -> None:
        next_s = self.next_s
        behind_s = now_s - self._tolerance_s - next_s
        if behind_s <= 0:
            self._returned_s = 0.0
        else:  # time in which nobody came is gone, but for the tolerance and what was returned
            self._returned_s = min(self._returned_s, behind_s)
            next_s += behind_s - self._returned_s
        self.next_s = next_s + amount / self.rate

    def give_back(self, amount: float) -> None:
        """Of what was started, so much was not needed; a negative amount takes more."""
        share_s = amount / self.rate
        self.next_s -= share_s
        returned_s = self._returned_s + share_s
        self._returned_s = returned_s if returned_s > 0 else 0.0

    def hold_back(self, amount: float, until_s: float) -> None:
        """What was saved up is gone; the next start comes at `until_s` and so much later."""
        self.next_s = max(self.next_s, until_s) + amount / self.rate
        self._returned_s = 0.0

    def change(self, rate: float, now_s: float) -> None:
        """What is not yet paid is paid at the new rate."""
        if self.next_s > now_s:
            self.next_s = now_s + (self.next_s - now_s) * (self.rate / rate)
        self.rate = rate

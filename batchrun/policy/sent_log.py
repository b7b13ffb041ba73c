"""What was sent when, and how much of it was refused: flat memory. Pure."""

from collections import deque

_TICK_S = 0.005  # what is sent within it is kept as one
_TICKS = 2048


class SentLog:
    """Counts of requests by the time they were sent."""

    def __init__(self) -> None:
        self.sent = 0
        self.refused = 0
        self._ticks: deque[list[float]] = deque(maxlen=_TICKS)  # time, sent before, refused of it

    def add(self, now_s: float) -> None:
        if not self._ticks or now_s - self._ticks[-1][0] >= _TICK_S:
            self._ticks.append([now_s, self.sent, 0])
        self.sent += 1

    def refuse(self, sent_s: float) -> None:
        """One that was sent then came back refused."""
        self.refused += 1
        for tick in reversed(self._ticks):
            if tick[0] <= sent_s:
                tick[2] += 1
                return

    def until(self, known_s: float) -> tuple[int, int]:
        """How many were sent until then, and how many refused of those sent later."""
        sent, refused = self.sent, 0
        for tick in reversed(self._ticks):
            if tick[0] <= known_s:
                break
            sent = int(tick[1])
            refused += int(tick[2])
        return sent, refused

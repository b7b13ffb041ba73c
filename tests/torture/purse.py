"""The kills that are still to come, shared by runs at the same time."""

from threading import Lock


class Purse:
    """A kill is taken before it is tried, and put back where the run ended before it came."""

    def __init__(self, kills: int) -> None:
        self._left = kills
        self._lock = Lock()

    def take(self) -> bool:
        """Whether one more kill may come."""
        with self._lock:
            if not self._left:
                return False
            self._left -= 1
            return True

    def put_back(self) -> None:
        with self._lock:
            self._left += 1

    @property
    def is_empty(self) -> bool:
        return not self._left

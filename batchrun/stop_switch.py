"""How a run is asked to stop, by signals or by whoever called it."""

from collections.abc import Callable

from batchrun.errors import Interrupted


class StopSwitch:
    """Asks a run to stop: the first time what is in flight lands, the second time it is dropped.

    For signal handlers; asked from the run's own thread while it runs.
    """

    def __init__(self) -> None:
        self.asked: list[Interrupted] = []
        self._listener: Callable[[], None] | None = None

    def ask(self, message: str, exit_code: int) -> None:
        self.asked.append(Interrupted(message, exit_code))
        if self._listener is not None:
            self._listener()

    def listen(self, listener: Callable[[], None]) -> None:
        self._listener = listener
        if self.asked:
            listener()

    @property
    def is_sending(self) -> bool:
        """Whether anything may be in flight."""
        return self._listener is not None

    def check(self, _rows: int = 0) -> None:
        """Raises `Interrupted` once asked: for work that is not sending."""
        if self.asked:
            raise self.asked[0]

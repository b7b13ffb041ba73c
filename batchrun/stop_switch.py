"""How a run is asked to stop, by signals or by whoever called it."""

import asyncio
from collections.abc import Callable

from batchrun.errors import Interrupted

_ASKED = 130  # the exit code of a run that its caller asked to stop, as of one that Ctrl-C did


class StopSwitch:
    """Asks a run to stop: the first time what is in flight lands, the second time it is dropped.

    One switch serves one run. `ask` may be called from any thread, also before the run starts.
    """

    def __init__(self) -> None:
        self.asked: list[Interrupted] = []
        self._listener: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def ask(self, message: str = "asked to stop", exit_code: int = _ASKED) -> None:
        """`message` is the summary's, unless something stronger ends the run."""
        self.asked.append(Interrupted(message, exit_code))
        if self._listener is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._listener)

    def listen(self, listener: Callable[[], None]) -> None:
        """From now on `listener` is called, on the running loop, for each time it was asked."""
        self._loop = asyncio.get_running_loop()
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

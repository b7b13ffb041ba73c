"""An answer on its way to its client: counted once, whether it arrives or not."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from batchrun.simulator.replies import Answer
from batchrun.simulator.requests import Asked
from batchrun.simulator.stats import Stats


class Delivery:
    """What is still to be counted of one answer: that it was made, and that it left the server."""

    def __init__(
        self,
        stats: Stats,
        asked: Asked,
        answer: Answer,
        end: Callable[[], None],
        *,
        is_billed: bool = True,
    ) -> None:
        self._stats = stats
        self._asked = asked
        self._answer = answer
        self._end = end
        self._is_open = is_billed

    def end(self) -> None:
        """No longer in flight; later calls do nothing."""
        self._end()

    def count(self, destroyed_by: str | None = None) -> None:
        """The answer is made; later calls count nothing."""
        if self._is_open:
            self._is_open = False
            answer = self._answer
            tokens = (answer.input_tokens, answer.output_tokens, answer.reasoning_tokens)
            self._stats.completed(self._asked.key, tokens, time.time(), destroyed_by)

    def finish(self, destroyed_by: str | None = None) -> None:
        """The answer is made, and no longer in flight."""
        self.count(destroyed_by)
        self.end()

    def leave(self, request: web.BaseRequest, destroyed_by: str | None = None) -> None:
        """The answer is made and goes out now; nobody may be there to take it."""
        gone = request.transport is None or request.transport.is_closing()
        self.count(destroyed_by or ("disconnect" if gone else None))

    def go_on_alone(self, due_s: float) -> None:
        """The client has hung up; the work goes on until it is due, and is billed."""
        if self._is_open:
            asyncio.get_running_loop().call_at(due_s, self.count, "disconnect")

    def drop(self) -> None:
        """The work is given up: nothing was made, nothing is billed."""
        self._is_open = False
        self._end()

"""Which fault an attempt meets, and what those that answer an error look like.

Pure: a fault is drawn from the seed, the body and how many times that body was let in before, so
that a run can be repeated whatever the order, and a retry draws anew.
"""

from dataclasses import dataclass, field

from batchrun.simulator import draws
from batchrun.simulator.api_errors import render_error, used_up
from batchrun.simulator.behavior import Behavior, Fault
from batchrun.simulator.limits import render_duration, retry_headers

_JSON = "application/json"
_REASONS = {
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Temporarily Unavailable",
}
_BODIES = {
    500: render_error(
        "The server had an error while processing your request. Sorry about that!",
        type_="server_error",
    ),
    502: render_error(
        "The upstream server did not answer.", type_="server_error", code="bad_gateway"
    ),
    503: render_error(
        "The engine is currently overloaded, please try again later.",
        type_="service_unavailable_error",
        code="server_is_overloaded",
    ),
}


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An answer that is an error."""

    status: int
    body: bytes
    content_type: str = _JSON
    headers: dict[str, str] = field(default_factory=dict)


class Drawer:
    """The rates of a behavior, ready to be drawn from."""

    def __init__(self, behavior: Behavior) -> None:
        self._seed = behavior.seed
        self._steps: list[tuple[float, Fault]] = []
        total = 0.0
        for fault, rate in behavior.rates().items():
            total += rate
            self._steps.append((total, fault))

    def draw(self, key: bytes, turn: int) -> Fault | None:
        """What the attempt meets; `turn` is how many times the body was let in before."""
        if not self._steps:
            return None
        share = draws.uniform(self._seed, key, "fault", turn)
        return next((fault for bound, fault in self._steps if share < bound), None)


def error_answer(fault: Fault, retry_after_s: float) -> ErrorAnswer | None:
    """What is answered; null for a fault that strikes the connection or an answer on its way."""
    match fault:
        case Fault.RATE_LIMIT_HINT:
            message = f"Rate limit reached. Please try again in {render_duration(retry_after_s)}."
            body = render_error(message, type_="requests", code="rate_limit_exceeded")
            return ErrorAnswer(429, body, headers=retry_headers(retry_after_s))
        case Fault.RATE_LIMIT_BARE:
            message = "Too many requests."
            return ErrorAnswer(
                429, render_error(message, type_="requests", code="rate_limit_exceeded")
            )
        case Fault.QUOTA:
            return ErrorAnswer(429, used_up().render())
        case Fault.ERROR_200:
            message = "The upstream answered with an error."
            return ErrorAnswer(
                200, render_error(message, type_="server_error", code="server_error")
            )
        case (
            Fault.RESET_BEFORE
            | Fault.RESET_WITHIN
            | Fault.TRUNCATED_JSON
            | Fault.NO_HEADERS
            | Fault.ENDLESS_BODY
            | Fault.STALLED_BODY
        ):
            return None
    status, _, form = fault.value.partition("_")
    return _server_error(int(status), form)


def _server_error(status: int, form: str) -> ErrorAnswer:
    if form == "json":
        return ErrorAnswer(status, _BODIES[status])
    if form == "html":
        title = f"{status} {_REASONS[status]}"
        page = (
            f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
            f"<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
        )
        return ErrorAnswer(status, page.encode(), "text/html")
    return ErrorAnswer(status, b"", "")

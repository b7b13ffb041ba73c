"""Which fault an attempt meets, and what the errors of the API itself look like.

Pure: a fault is drawn from the seed, the body and how many times that body was let in before, so
that a run can be repeated whatever the order, and a retry draws anew.
"""

from batchrun.simulator import draws
from batchrun.simulator.api_errors import render_error, used_up
from batchrun.simulator.behavior import Behavior
from batchrun.simulator.gateway_errors import ErrorAnswer, gateway_error, html_page
from batchrun.simulator.kinds import Fault
from batchrun.simulator.limits import render_duration, retry_headers

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
_IN_STREAM = {
    Fault.RESET_WITHIN: Fault.STREAM_RESET,
    Fault.TRUNCATED_JSON: Fault.STREAM_END,
}
_IN_PIECE = {
    Fault.STREAM_RESET: Fault.RESET_WITHIN,
    Fault.STREAM_END: Fault.TRUNCATED_JSON,
    **{fault: Fault.ERROR_200 for fault in Fault if fault.startswith("stream_error_")},
}


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
            headers = retry_headers(retry_after_s)
            return ErrorAnswer(429, body, headers=headers, tells_limits=True)
        case Fault.RATE_LIMIT_BARE:
            message = "Too many requests."
            return ErrorAnswer(
                429, render_error(message, type_="requests", code="rate_limit_exceeded")
            )
        case Fault.QUOTA:
            return ErrorAnswer(429, used_up().render(), tells_limits=True)
        case Fault.ERROR_200:
            message = "The upstream answered with an error."
            body = render_error(message, type_="server_error", code="server_error")
            return ErrorAnswer(200, body, tells_limits=True)
    status, _, form = fault.value.partition("_")
    if status in ("500", "502", "503") and form in ("json", "html", "empty"):
        return _server_error(int(status), form)
    return gateway_error(fault, retry_after_s)


def takes_work(fault: Fault) -> bool:
    """The error comes after the time of an answer; a refusal comes at once."""
    return fault.value[0] != "4" and fault is not Fault.QUOTA


def as_struck(fault: Fault, *, streams: bool) -> Fault:
    """The fault that comes to the same for a stream, or for an answer in one piece."""
    return (_IN_STREAM if streams else _IN_PIECE).get(fault, fault)


def _server_error(status: int, form: str) -> ErrorAnswer:
    if form == "json":
        return ErrorAnswer(status, _BODIES[status], tells_limits=True)
    if form == "html":
        return ErrorAnswer(status, html_page(f"{status} {_REASONS[status]}"), "text/html")
    return ErrorAnswer(status, b"", "")

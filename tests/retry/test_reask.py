import json

from batchrun.job.sections import RetryJob
from batchrun.records import Request, Response, Usage
from batchrun.retry.next_step import Asks, next_ask
from tests.runs import response

BODY = b'{"model":"m","max_output_tokens":100,"input":"x"}'
REQUEST = Request(0, "0", "file", BODY, "0" * 16, "m", 100, ())
RAISE = RetryJob(on_incomplete="raise_limit")


def _answer(
    *, truncated: bool = False, fits: bool | None = None, output_tokens: int | None = None
) -> Response:
    return response(
        status="incomplete" if truncated else "completed",
        usage=Usage(output_tokens=output_tokens),
        truncated=truncated,
        output_parsed_ok=fits,
    )


def test_a_truncated_answer_stands_unless_raising_is_asked_for() -> None:
    assert next_ask(REQUEST, _answer(truncated=True), Asks(), RetryJob()) is None


def test_the_limit_is_doubled_at_most_twice_and_all_else_stays() -> None:
    asked, asks = REQUEST, Asks()
    for limit in (200, 400):
        again = next_ask(asked, _answer(truncated=True), asks, RAISE)
        assert again is not None
        asked, asks = again
        fields = {"model": "m", "max_output_tokens": limit, "input": "x"}
        assert json.loads(asked.body) == fields
        assert (asked.hash, asked.max_output_tokens) == (REQUEST.hash, limit)
    assert next_ask(asked, _answer(truncated=True), asks, RAISE) is None


def test_without_a_limit_of_its_own_what_came_is_doubled() -> None:
    free = Request(0, "0", "file", b'{"model":"m","input":"x"}', "0" * 16, "m", None, ())
    again = next_ask(free, _answer(truncated=True, output_tokens=512), Asks(), RAISE)
    assert again is not None
    assert json.loads(again[0].body)["max_output_tokens"] == 1024
    assert next_ask(free, _answer(truncated=True), Asks(), RAISE) is None


def test_output_that_does_not_fit_is_asked_for_again_as_often_as_said() -> None:
    settings = RetryJob(on_invalid_output=2)
    asks = Asks()
    for _ in range(2):
        again = next_ask(REQUEST, _answer(fits=False), asks, settings)
        assert again is not None
        assert again[0] is REQUEST
        asks = again[1]
    assert next_ask(REQUEST, _answer(fits=False), asks, settings) is None
    assert next_ask(REQUEST, _answer(fits=True), Asks(), settings) is None
    assert next_ask(REQUEST, _answer(fits=None), Asks(), settings) is None

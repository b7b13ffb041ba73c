"""Lines of the OpenAI Batch API: `{"custom_id": …, "method": "POST", "url": …, "body": {…}}`."""

from batchrun.inputs.json_text import decode
from batchrun.inputs.rows import RowProblem
from batchrun.records import JsonObject

URL = "/v1/responses"
COLUMNS = frozenset({"body", "method", "url"})


def is_batch_line(data: JsonObject) -> bool:
    """Whether the row is meant as a Batch line: a column `body` may be any text besides."""
    body = data.get("body")
    if type(body) is dict:
        return True
    if body is None:
        return False
    meant = data.get("url") is not None or data.get("method") is not None
    return meant or (type(body) is str and body.lstrip().startswith("{"))


def batch_body(data: JsonObject) -> JsonObject:
    """The request that the line asks for. Raises `RowProblem`."""
    url = data.get("url")
    if url is not None and url != URL:
        raise RowProblem(
            f"`url` is {url!r:.80}, but batchrun sends to {URL} alone; "
            + (
                "for a chat request put `messages` at the top level of the row"
                if isinstance(url, str) and "chat" in url
                else "take the row out, or write the request for that address"
            )
        )
    method = data.get("method")
    if method is not None and str(method).upper() != "POST":
        raise RowProblem(f"`method` is {method!r:.40}; it must be POST")
    body = data["body"]
    if type(body) is str:
        try:
            body = decode(body)
        except RowProblem as problem:
            raise RowProblem(f"`body` is text that holds no request: {problem.message}") from None
    if type(body) is not dict:
        raise RowProblem("`body` must be an object: the request as the API takes it")
    return dict(body)

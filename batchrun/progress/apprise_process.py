"""A process that sends one notice with apprise, or says what apprise makes of URLs.

Nobody knows how long a send takes, or what a library's threads do then: a process can be killed.
The question is JSON on standard input, where no other user sees the URL; the answer is JSON on
standard output.
"""

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote

_URL = re.compile(r"([A-Za-z0-9+.-]+)://\S*")
_PARTS = re.compile(r"[?&][^=&]*=|[/:?#&=@,;+\s]+")  # between them; names of settings are none
_SHORTEST = 4  # letters of a part of a URL that is hidden
_MASK = "***"


def serve() -> NoReturn:
    """The process itself."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    asked = json.load(sys.stdin)
    signal.alarm(asked["seconds"])  # also where nobody is left to kill it
    urls = asked.get("urls")
    answer = _send(**asked["notice"]) if urls is None else [_looked_at(url) for url in urls]
    answer_to.write(json.dumps(answer))
    answer_to.flush()
    os._exit(0)  # threads of services that hang are not waited for


class _Said(logging.Handler):
    """What apprise logs: why something failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        logger = logging.getLogger("apprise")
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _service(url: str) -> Any:
    """What apprise makes of a URL; null where it knows none."""
    import apprise  # noqa: PLC0415 - an extra

    asset = apprise.AppriseAsset(app_id="batchrun", app_desc="batchrun", app_url="")
    return apprise.Apprise.instantiate(url, asset=asset)


def _looked_at(url: str) -> Mapping[str, Any]:
    """Whether it can be used, whether it carries what its service keeps secret, and its name."""
    said = _Said()
    service = _service(url)
    if service is None:
        return {"why": hidden(said.lines, url)}
    shown = service.url(privacy=True)
    return {
        "why": None,
        "name": shown.partition("?")[0],
        "has_secret": shown != service.url(privacy=False),
    }


def _send(url: str, title: str, body: str, kind: str) -> str | None:
    """Why it was not sent; null where it was."""
    import apprise  # noqa: PLC0415 - an extra

    said = _Said()
    try:
        one = apprise.Apprise()
        service = _service(url)
        if service is not None and one.add(service):
            notify_type = apprise.NotifyType(kind)
            if one.notify(
                body=body,
                title=title,
                notify_type=notify_type,
                body_format=apprise.NotifyFormat.TEXT,
            ):
                return None
    except Exception as error:  # noqa: BLE001 - whatever a service raises is no matter of the run
        said.lines.append(f"{type(error).__name__}: {error}")
    return hidden(said.lines, url)


def hidden(lines: Sequence[str], url: str) -> str:
    """The last line, without URLs and without any part of this one."""
    text = _URL.sub(r"\1://…", lines[-1] if lines else "no reason was given")
    rest = url.partition("://")[2]
    parts = {*_PARTS.split(rest), *map(unquote, _PARTS.split(rest)), *_PARTS.split(unquote(rest))}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _SHORTEST:
            text = text.replace(part, _MASK)
    return " ".join(text.split())

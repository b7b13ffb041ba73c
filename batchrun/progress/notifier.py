"""Sends notices to the URLs of `[notify]`, each in a process of its own that is killed in time."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

from msgspec.structs import asdict

from batchrun.errors import JobError
from batchrun.job.credentials import FROM_ENVIRONMENT, IN_VARIABLE, notify_urls
from batchrun.job.sections import Job
from batchrun.progress.notices import Notice

SEND_S = 10.0  # for one notice to one address
_CHECK_S = 60.0  # for all addresses; nothing is sent meanwhile
_MAIN = "from batchrun.progress.apprise_process import serve; serve()"


class Address(NamedTuple):
    """Where notices go."""

    name: str  # for messages; never a secret
    url: str


class _Failed(Exception):  # noqa: N818 - its text is why
    """The process gave no answer."""


def usable_addresses(job: Job) -> list[Address]:
    """Those of `[notify]`. Raises `JobError` where one cannot be used, or is no place for secrets.

    Waits for a process; nothing is sent.
    """
    urls = notify_urls(job)
    if not urls:
        return []
    if find_spec("apprise") is None:
        raise JobError(
            "notify.urls (--notify) needs apprise, which is not installed; "
            "pip install 'batchrun[notify]'"
        )
    try:
        found = _answer({"urls": list(urls.values())}, _CHECK_S)
    except _Failed as error:
        raise JobError(f"notify.urls (--notify): {error}") from None
    return [
        _address(number, given, url, about)
        for number, ((given, url), about) in enumerate(zip(urls.items(), found, strict=True), 1)
    ]


def _address(number: int, given: str, url: str, about: Mapping[str, Any]) -> Address:
    """`given`: in the job; `about`: what apprise makes of it. Raises `JobError`."""
    is_secret = given.startswith(FROM_ENVIRONMENT)
    scheme = given.partition("://")[0]
    what = f"notify.urls (--notify): {given if is_secret else f'number {number} ({scheme}://…)'}"
    if about["why"] is not None:
        raise JobError(
            f"{what} is not a URL that apprise can use ({about['why']}); see "
            "https://appriseit.com/services for the form that your service needs"
        )
    if about["has_secret"] and not is_secret:
        raise JobError(f"{what} holds a secret. {IN_VARIABLE}")
    return Address(given if is_secret else about["name"], url)


class Notifier:
    """Sends without anybody waiting; what goes wrong is a line in `problems`."""

    def __init__(self, addresses: Sequence[Address], seconds: float = SEND_S) -> None:
        """`seconds`: after that a send is killed."""
        self.problems: list[str] = []
        self._addresses, self._seconds = addresses, seconds
        self._threads: list[threading.Thread] = []

    def send(self, notice: Notice) -> None:
        """Begins to send it to each address."""
        for address in self._addresses:
            # Not of a pool, whose threads the interpreter would wait for at its end.
            thread = threading.Thread(target=self._send, args=(address, notice), daemon=True)
            thread.start()
            self._threads.append(thread)

    def wait(self) -> None:
        """Until all that was sent has arrived or was killed."""
        for thread in self._threads:
            thread.join()

    def _send(self, address: Address, notice: Notice) -> None:
        try:
            why = _answer({"notice": {"url": address.url, **asdict(notice)}}, self._seconds)
        except _Failed as error:
            why = str(error)
        if why is not None:
            self.problems.append(f'{address.name} did not get "{notice.title}": {why}')


def _answer(question: Mapping[str, Any], seconds: float) -> Any:
    """What the process answers. Raises `_Failed`."""
    asked = json.dumps({**question, "seconds": int(seconds) + 5})
    try:
        ended = subprocess.run(  # noqa: S603 - this interpreter, and this code
            [sys.executable, "-P", "-c", _MAIN],
            input=asked.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            process_group=0,  # what the terminal sends is for our process
            timeout=seconds,
            check=False,
        )
        return json.loads(ended.stdout)
    except subprocess.TimeoutExpired:
        raise _Failed(f"no answer within {seconds:g} s") from None
    except OSError as error:
        raise _Failed(f"no process can be started ({error.strerror})") from None
    except ValueError:
        how = f"exit code {ended.returncode}"
        raise _Failed(f"apprise cannot be used ({how}); try: python -c 'import apprise'") from None

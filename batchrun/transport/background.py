"""Background mode: work is begun, asked about until it ends, and cancelled when time is up.

The response's id is on disk before the first poll, so that a crash costs no second call. What a
poll says oddly does not undo work that is paid for: it is asked again while the row's time lasts.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from msgspec.structs import replace
from yarl import URL

from batchrun.dialects.responses import background_body
from batchrun.dialects.work_state import begun_state, work_state
from batchrun.errors import EndpointError, ErrorKind
from batchrun.formats.printable import cut
from batchrun.records import Reply, Request
from batchrun.retry.error_kinds import NO_WORDS, OwnWords, kind_of, own_kind, parse_error
from batchrun.retry.next_step import FACTS, Cure

OnBegun = Callable[[Request, str], Awaitable[None]]
# One exchange, by method, URL, body and client request id. Raises `EndpointError`.
Ask = Callable[[str, URL, bytes | None, str], Coroutine[Any, Any, Reply]]
_FIRST_POLL_S = 1.0
_LONGEST_POLL_S = 15.0
_GROWTH = 1.5
FORGOTTEN_S = 60.0  # of polls that say 404: until then the id is not yet, or just not here, known
_FIRST_ALONE_S = FORGOTTEN_S + _LONGEST_POLL_S  # for the first create call, at most
_SAID = 300  # characters of a poll's words in a message
_UNREADABLE = 8  # polls in a row whose answer nobody can unpack


class BackgroundMode:
    """Background work of one run; it knows whether the server ever knew an id that it gave."""

    def __init__(
        self, ask: Ask, url: URL, on_begun: OnBegun | None, words: OwnWords = NO_WORDS
    ) -> None:
        """`on_begun` is awaited for each response that has begun, before the first poll.

        `words`: the job's own, of `[retry.words]`.
        """
        self._ask, self._url, self._on_begun, self._words = ask, url, on_begun, words
        self._is_proven = False  # a poll has known an id, or the server answers at once
        self._has_known = False  # the former
        self._first: asyncio.Future[None] | None = None  # the create call that goes out alone
        self._lacks_mode: EndpointError | None = None  # how the first showed that there is none

    async def send(
        self,
        request: Request,
        client_request_id: str,
        remaining_s: float,
        on_accepted: Callable[[], None] = lambda: None,
    ) -> Reply:
        """The whole answer, once the work is done. Raises `EndpointError`.

        The work is cancelled after `remaining_s` seconds, what remains of the row's time.
        `on_accepted` is called when it has begun; work of an earlier command has begun long ago.
        """
        until_s = time.monotonic() + remaining_s
        if request.resume_id is not None:
            return await self._poll(request.resume_id, client_request_id, until_s, is_resumed=True)
        # A server that cannot be asked about its work shows it at the first row.
        while not self._is_proven and self._first is not None:
            done, _ = await asyncio.wait((self._first,), timeout=_FIRST_ALONE_S)
            if not done:
                break
            if self._lacks_mode is not None and not self._is_proven:
                # The run stops by it; what waits here must not create what cannot be had either.
                raise EndpointError(self._lacks_mode.kind, self._lacks_mode.message, was_sent=False)
        first = None
        if not self._is_proven and self._first is None:
            first = self._first = asyncio.get_running_loop().create_future()
        try:
            return await self._begin(request, client_request_id, until_s, on_accepted)
        finally:
            if first is not None and self._first is first:
                self._let_others_begin()

    async def _begin(
        self,
        request: Request,
        client_request_id: str,
        until_s: float,
        on_accepted: Callable[[], None],
    ) -> Reply:
        try:
            asking = self._ask("POST", self._url, background_body(request.body), client_request_id)
            created = await asking
        except EndpointError as error:
            if error.response_id is None:
                raise
            response_id = error.response_id  # a stream that broke off; the work goes on
        else:
            state = begun_state(created.body)
            if created.http_status >= 300 or not state.is_running or state.id is None:
                self._is_proven = self._is_proven or state.has_ended
                return created  # an error, or a server that answers at once
            response_id = state.id
        if self._on_begun is not None:
            await self._on_begun(request, response_id)
        on_accepted()
        return await self._poll(response_id, client_request_id, until_s, is_resumed=False)

    async def _poll(
        self, response_id: str, client_request_id: str, until_s: float, *, is_resumed: bool
    ) -> Reply:
        url = self._url_of(response_id)
        wait_s = 0.0 if is_resumed else _FIRST_POLL_S
        missing_s: float | None = None  # since when polls say that there is no such response
        said, unreadable = "", 0
        while True:
            await asyncio.sleep(max(0.0, min(wait_s, until_s - time.monotonic())))
            wait_s = min(max(wait_s, _FIRST_POLL_S) * _GROWTH, _LONGEST_POLL_S)
            try:
                reply = await self._ask("GET", url, None, client_request_id)
            except EndpointError as error:
                said = error.message  # the work goes on without us: ask again
                unreadable = unreadable + 1 if error.kind is ErrorKind.UNREADABLE else 0
                if FACTS[error.kind].ends_polls or unreadable >= _UNREADABLE:
                    error.response_id = response_id
                    raise
            else:
                unreadable = 0
                wait_s = max(wait_s, reply.retry_after_s or 0.0)
                state = work_state(reply.body)
                if reply.http_status < 300 and (state.is_running or state.has_ended):
                    self._known()
                    missing_s, said = None, ""
                    if state.is_cancelled and is_resumed:
                        raise EndpointError(
                            ErrorKind.GONE,
                            f"{response_id}, begun by an earlier command, was cancelled",
                            reply.http_status,
                            response_id,
                        )
                    if state.has_ended:
                        return replace(reply, response_id=response_id)
                else:
                    kind, said = _refusal(reply, self._words)
                    facts = FACTS[kind]
                    if facts.ends_polls and facts.cure is Cure.NONE:  # it is about the work
                        return replace(reply, response_id=response_id)
                    if facts.ends_polls:  # the run ends, and the next command asks again
                        raise EndpointError(kind, said, reply.http_status, response_id)
                    now_s = time.monotonic()
                    http_status = reply.http_status
                    if http_status == 404 or (kind is ErrorKind.NOT_FOUND and http_status < 500):
                        missing_s = now_s if missing_s is None else missing_s
                    if self._is_unknown(http_status, missing_s, now_s):
                        unknown = self._unknown(response_id, http_status, is_resumed=is_resumed)
                        if unknown.kind is ErrorKind.NOT_FOUND:
                            self._lacks_mode = unknown
                        raise unknown
            if time.monotonic() >= until_s:
                return await self._cancel(response_id, client_request_id, said)

    def _known(self) -> None:
        self._has_known = self._is_proven = True
        if self._first is not None:
            self._let_others_begin()

    def _let_others_begin(self) -> None:
        first, self._first = self._first, None
        if first is not None and not first.done():
            first.set_result(None)

    def _is_unknown(self, http_status: int, missing_s: float | None, now_s: float) -> bool:
        """Whether a poll with this status says for good that there is no such response."""
        if http_status == 410 or (http_status in (405, 501) and not self._has_known):
            return True
        return missing_s is not None and now_s - missing_s >= FORGOTTEN_S

    def _unknown(self, response_id: str, http_status: int, *, is_resumed: bool) -> EndpointError:
        if is_resumed or self._has_known:
            kind, begun = ErrorKind.GONE, ", begun by an earlier command" if is_resumed else ""
            message = f"the server no longer knows {response_id}{begun}"
        else:
            kind = ErrorKind.NOT_FOUND
            message = (
                "the server began a background response and does not know it: it has no "
                "background mode; use --mode stream or plain"
            )
        return EndpointError(kind, message, http_status, response_id)

    async def _cancel(self, response_id: str, client_request_id: str, said: str) -> Reply:
        """The answer, if it ended just before it was cancelled. Raises `EndpointError`."""
        http_status = None
        try:
            url = self._url_of(response_id, "cancel")
            reply = await self._ask("POST", url, b"", client_request_id)
            http_status = reply.http_status
            state = work_state(reply.body)
            if http_status < 300 and state.has_ended and not state.is_cancelled:
                return replace(reply, response_id=response_id)
        except EndpointError:
            pass  # it was asked to, and that is all that can be done
        words = f"; its last poll: {cut(said, _SAID)}" if said else ""
        raise EndpointError(
            ErrorKind.TIMEOUT,
            "the background response was not done in the row's time (retry.max_elapsed_s); "
            f"cancelled{words}",
            http_status,
            response_id,
        )

    def _url_of(self, *parts: str) -> URL:
        return self._url.with_query(None).joinpath(*parts).with_query(self._url.query)


def _refusal(reply: Reply, words: OwnWords) -> tuple[ErrorKind, str]:
    """What a poll says that is no state of the work, and the words for it."""
    error, status = parse_error(reply.body), reply.http_status
    if status < 300 and error.code is None and error.type is None:
        return own_kind(words, error.message) or ErrorKind.UNREADABLE, error.message
    return kind_of(status, error, reply.error_type, words=words), error.message

"""Leases become one stream of requests, and each is done once all its requests are stored."""

import random
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.errors import ErrorKind, InputError
from batchrun.executors.messages import Lease
from batchrun.records import BadRow, Failure, Outcome, Request
from batchrun.runner.cluster.lease_feed import LeaseFeed
from batchrun.runner.cluster.worker_counts import Unheard


def _lease(number: int, first: int, marks: bytes) -> Lease:
    return Lease(number, 0, first, first, len(marks), 0, 0, marks)


def _read(lease: Lease) -> Iterator[Request | BadRow]:
    for at, mark in enumerate(lease.marks):
        if mark != 1:
            row = lease.row + at
            yield Request(row, f"q{row}", "file", b"{}", "0" * 16, "m", None, ())


def _outcome(request: Request | BadRow) -> Outcome:
    assert isinstance(request, Request)
    return Outcome(request, Failure(ErrorKind.BUSY, "busy"), (), "", "plain")


def test_what_there_is_comes_before_the_wait_for_more() -> None:
    done: list[int] = []
    feed = LeaseFeed(_read, done.append)
    feed.add(_lease(1, 0, b"\0\1\0"))
    feed.add(_lease(2, 3, b"\2"))
    feed.add(_lease(3, 4, b"\1"))
    assert done == [3]
    first = [next(feed) for _ in range(3)]
    assert [one.row for one in first if one is not None] == [0, 2, 3]
    assert feed.unread == 0
    assert next(feed) is None
    waiting = threading.Thread(target=lambda: first.append(next(feed)))
    waiting.start()
    feed.add(_lease(4, 10, b"\0"))
    waiting.join()
    assert first[3] is not None
    for one in reversed(first):
        assert one is not None
        feed.stored([_outcome(one)])
    assert done == [3, 4, 2, 1]
    ended = threading.Thread(target=lambda: first.extend(feed))
    ended.start()
    feed.close()
    ended.join()
    assert [one for one in first[4:] if one is not None] == []
    with pytest.raises(StopIteration):
        next(feed)


def test_a_lease_that_lacks_rows_is_an_error() -> None:
    feed = LeaseFeed(lambda lease: iter(list(_read(lease))[1:]), lambda _: None)
    feed.add(_lease(1, 0, b"\0\0"))
    assert next(feed) is not None
    with pytest.raises(InputError, match="the input has fewer rows"):
        next(feed)


@given(seed=st.integers(0, 1 << 30))
def test_what_is_said_in_reports_is_heard_whichever_are_lost(seed: int) -> None:
    draw, unheard, heard = random.Random(seed), Unheard[int](), set[int]()
    added, reports, latest = 0, list[tuple[int, tuple[int, ...]]](), 0
    for number in range(1, 60):
        for _ in range(draw.randint(0, 2)):
            added += 1
            unheard.add(added)
        reports.append((number, unheard.tell(number)))
        if draw.random() < 0.5:  # one comes, perhaps a late one, which is not looked at
            came, items = draw.choice(reports)
            if came > latest:
                latest = came
                heard.update(items)
            unheard.heard(latest)
    last = unheard.tell(60)
    assert heard | set(last) == set(range(1, added + 1))
    assert heard.isdisjoint(last)


def test_of_what_is_said_in_reports_the_latest_few_stay() -> None:
    unheard = Unheard[int](3)
    for number in range(10):
        unheard.add(number)
    assert unheard.tell(1) == (7, 8, 9)
    unheard.add(10)
    assert unheard.tell(2) == (8, 9, 10)
    unheard.heard(1)
    assert unheard.tell(3) == (10,)

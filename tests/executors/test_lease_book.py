"""Leases end when they are done; those of the dead go to others, with what remains of them."""

import pytest

from batchrun.errors import InputError
from batchrun.executors.lease_book import MOST_DEATHS, LeaseBook, rows_of
from tests.executors.fleet_world import Rows


def test_a_lease_of_a_dead_worker_is_leased_again_without_what_it_completed() -> None:
    book = LeaseBook(Rows(10))
    first, second = book.lease(1, 4), book.lease(1, 6)
    assert first is not None
    assert second is not None
    assert book.lease(2, 5) is None
    book.done(1, [first.id, first.id])
    assert book.held_by(1) == [second]
    assert book.take_back(1, lambda _lease: {0, 1}) == 0
    assert (book.left, book.is_done) == (4, False)
    again = book.lease(2, 1)
    assert again is not None
    assert again.id not in (first.id, second.id)
    assert rows_of([again]) == [4, 5, 6, 7, 8, 9]
    book.done(1, [again.id])  # the dead say nothing
    assert not book.is_done
    book.done(2, [again.id])
    assert book.is_done


def test_rows_with_which_one_worker_after_the_other_dies_end_the_run() -> None:
    book = LeaseBook(Rows(3))
    for worker in range(MOST_DEATHS):
        assert book.lease(worker, 3) is not None
        if worker == MOST_DEATHS - 1:
            with pytest.raises(InputError, match="rows 1 to 3 of the input"):
                book.take_back(worker, lambda _lease: set())
        else:
            book.take_back(worker, lambda _lease: set())
    assert book.left == 3


def test_workers_that_die_while_rows_are_completed_end_nothing() -> None:
    book = LeaseBook(Rows(20))
    for worker in range(20):
        lease = book.lease(worker, 20)
        assert lease is not None
        place = lease.marks.find(0)
        book.take_back(worker, lambda _lease, place=place: {place})  # type: ignore[misc]
    assert book.is_done

"""The shares of workers that stand still, wake up, or have in flight what others are to get."""

from batchrun.executors.share_book import ShareBook, SharedLimits
from batchrun.limits.sharing.shares import WHOLE, ScopeNews, Shares, SharesUsed
from batchrun.records import Scope

SCOPE = Scope("http://127.0.0.1/v1", "KEY", "m")
TICK_S = 0.15
BUSY = SharesUsed(waiting=10, started=5, for_rate=True)
PER_S = 600 / 60.3


class Book:
    """A share book, its clock, and what each worker was told last."""

    def __init__(self, workers: int, requests_per_minute: float | None = None) -> None:
        self.book = ShareBook(SharedLimits(100, requests_per_minute))
        self.now_s = 100.0
        self.used = dict.fromkeys(range(workers), BUSY)
        self.told: dict[int, Shares] = {}
        self._seqs = dict.fromkeys(range(workers), 0)
        for worker in range(workers):
            self.book.join(worker, self.now_s)

    def go_on(self, seconds: float, *, still: tuple[int, ...] = ()) -> None:
        """Each worker is called again and again, but for those that stand still."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            for worker in self.used:
                if worker not in still:
                    self._seqs[worker] += 1
                    self.told[worker] = self.book.shares(worker, self._seqs[worker], self.now_s)
            self.now_s += TICK_S
            for worker in self.used:
                if worker not in still:
                    self.book.heard(worker, self._seqs[worker], self.used[worker], self.now_s)

    @property
    def parts(self) -> list[int]:
        return [self.told[worker].rate for worker in self.used]


def test_the_parts_of_a_worker_that_stands_still_are_the_others_until_it_is_heard_of_again() -> (
    None
):
    book = Book(3, requests_per_minute=600.0)
    book.go_on(3.0)
    assert max(book.parts) - min(book.parts) <= 1
    assert sum(book.parts) == WHOLE
    book.go_on(2.0, still=(1,))
    assert book.parts[0] + book.parts[2] == WHOLE
    pace = [book.told[worker].requests for worker in (0, 2)]
    assert all(one is not None and abs(one.pace - PER_S / 2) < 0.01 for one in pace)
    assert (book.told[1].absences, book.book.is_silent(1)) == (0, True)
    book.go_on(2.0)
    assert sum(book.parts) == WHOLE
    assert max(book.parts) - min(book.parts) <= 0.05 * WHOLE
    assert (book.told[1].absences, book.book.is_silent(1)) == (1, False)


def test_nobody_is_silent_while_it_was_the_driver_that_stood_still() -> None:
    book = Book(3)
    book.go_on(3.0)
    book.now_s += 20.0
    book.go_on(1.0)
    assert [book.told[worker].absences for worker in range(3)] == [0, 0, 0]


def test_a_part_is_given_to_others_as_what_is_in_flight_lands() -> None:
    book = Book(2)
    book.go_on(2.0, still=(1,))
    assert book.told[0].rate == WHOLE
    for landed, part in ((0, 0.0), (10, 0.25), (20, 0.5)):
        # Of forty that the server takes, twenty are to be for the other worker.
        news = ScopeNews(SCOPE, takes=40.0, excess=20 - landed)
        book.used[0] = SharesUsed(10, 10, 50, for_rate=True, scopes=(news,))
        book.go_on(1.0)
        assert abs(book.told[1].rate - part * WHOLE) <= 1
        assert book.told[0].rate == WHOLE // 2


def test_parts_follow_one_another_so_that_they_can_be_divided_in_whole_ones() -> None:
    book = Book(3)
    for still in ((), (0,), ()):
        book.go_on(3.0, still=still)
        told = [one for worker, one in book.told.items() if worker not in still]
        ends = [one.before + one.rate for one in told]
        assert [one.before for one in told] == [0, *ends[:-1]]
        assert ends[-1] == WHOLE

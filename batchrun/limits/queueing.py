"""How many requests in flight suit a server that queues. No I/O: the time is an argument.

A server such as vLLM refuses nothing: requests that it cannot work on wait there, in the end until
they time out. With more in flight, throughput grows at a server that is distant or has slow
answers; at a server that queues, only latency grows. So as many are in flight as raise throughput,
and a few more; more and fewer are tried from time to time.
"""

import math

from batchrun.limits import tuning
from batchrun.limits.queue_estimate import (
    LevelEstimate,
    Sizes,
    Sums,
    enough,
    has_changed,
    out_of_date,
)
from batchrun.limits.rate import AdvertisedRate
from batchrun.limits.rate_estimate import RefusedShare
from batchrun.limits.verdicts import GO, LimitStatus, Verdict, Wait
from batchrun.records import Finish, Need, Slot
from batchrun.retry.next_step import REFUSALS, TIME_OUTS


class Throughput:
    """Allows as many attempts of one scope in flight as raise its server's throughput.

    It measures in rounds. A round begins when as many are in flight as are allowed, and counts the
    answers to what is sent after that. A server that refuses a considerable share, or advertises
    limits, does not queue: for it, everything may pass.
    """

    def __init__(self, most: int, timeout_s: float, *advertised: AdvertisedRate) -> None:
        self.most = most
        self.now = 0
        self._timeout_s = timeout_s
        self._longest_s = timeout_s / tuning.QUEUE_TIMEOUT
        self._advertised = advertised
        self._allowed = min(most, tuning.CONCURRENCY_FIRST)
        self._part = 1.0  # this process's part of what is in flight
        self._settle_s = 0.0  # until other processes have followed
        self._leads = True
        self._sizes = Sizes()
        self._sums: dict[int, Sums] = {}  # by the number in flight
        self._levels: dict[int, LevelEstimate] = {}  # the estimates from these
        self._base_s = math.inf  # the least latency of an answer of the mean size, ...
        self._least_s = math.inf  # ... also before the server changed
        self._recent_s = 0.0  # average of the latest latencies
        self._round = Sums()
        self._began_s: float | None = None  # when the round began
        self._needs = 0.0  # answers of a round
        self._held = 0  # rounds at the best number
        self._probes_up = False  # whether the last probe tried more
        self._searches = True  # the first search is going on
        self._grows = True  # more may be better
        self._doubted = 0  # so many in flight seemed too many
        self._turn = 0  # after the server has changed: 1: more is tried first, -1: fewer
        self._sent = 0
        self._share = RefusedShare()
        self._limit_s = -math.inf  # when a considerable share was refused: there is a limit
        self._refused_s = -math.inf  # its latest refusal
        self._cut_s = -math.inf  # time-outs of what was sent before have had their effect
        self._were: list[tuple[float, int]] = []  # until when more were allowed, and how many

    def set_part(
        self, part: float, now_s: float, settle_s: float = 0.0, *, leads: bool = True
    ) -> None:
        """Sets this process's part of what is in flight.

        One process measures (`leads`); the others have followed it after `settle_s`.
        """
        is_new = part != self._part
        if is_new:
            self._allow(self._allowed * part / self._part, now_s)
        if leads and (is_new or not self._leads):
            self._restart()
        self._part, self._settle_s, self._leads = part, settle_s, leads

    def in_all(self) -> int:
        """In flight with all processes together, as this one has measured."""
        return max(1, round(self._allowed / self._part))

    def follow(self, in_all: int, now_s: float) -> None:
        """Follows the process that measures, which allows so many in all."""
        if not self._leads:
            self._allow(in_all * self._part, now_s)

    def verdict(self, need: Need, now_s: float) -> Verdict:
        if self.now < self._allowed:
            return GO
        if self._refuses(now_s):
            self._pass()
            return GO
        if self._began_s is None and self.now == self._allowed and self._leads:
            self._begin(now_s + self._settle_s)
        return Wait()

    def started(self, need: Need, now_s: float) -> None:
        self.now += 1
        self._sent += 1

    def finished(self, slot: Slot, finish: Finish, now_s: float) -> None:
        if finish.kind is None and finish.answered:
            self._answered(now_s - slot.started_s, finish.output_tokens, slot, now_s)
        elif finish.kind in TIME_OUTS and self._may_cut(slot):
            self._cut(slot, now_s)
        elif finish.kind in REFUSALS:
            if self._share.is_large(self._sent):
                self._limit_s = now_s
            if now_s - self._limit_s < tuning.SURE_S:
                self._refused_s = now_s
        self.now -= 1

    def status(self, now_s: float) -> LimitStatus:
        name, level = "the server's throughput", self._levels.get(self._allowed)
        if self._allowed >= self.most or self._refuses(now_s):
            return LimitStatus(name, self.now)
        per_s = None if self._grows or level is None else level.per_s
        return LimitStatus(name, self.now, self._allowed, of="in flight", per_s=per_s)

    @property
    def waits(self) -> bool:
        """Whether answers wait for others: a time-out may then be due to waiting."""
        return self._recent_s >= tuning.QUEUE_WAITS * self._least_s

    def _refuses(self, now_s: float) -> bool:
        if now_s - self._refused_s < tuning.QUEUE_REFUSED_S:
            return True
        return any(one.rate < math.inf for one in self._advertised)

    def _restart(self) -> None:
        """Forgets measurements, which were made with another part of the server's work."""
        self._sums.clear()
        self._levels.clear()
        self._began_s, self._base_s, self._searches, self._grows = None, math.inf, False, True

    def _pass(self) -> None:
        """Lets everything pass while another limit applies; continues from there afterwards."""
        self._allowed, self._began_s, self._grows = min(self.most, self.now + 1), None, True
        self._sums.clear()
        self._levels.clear()

    def _may_cut(self, slot: Slot) -> bool:
        """Whether a time-out lowers it: once for all sent before, and only if waiting is likely."""
        return slot.started_s > self._cut_s and (self.waits or self._least_s == math.inf)

    def _answered(self, latency_s: float, tokens: int | None, slot: Slot, now_s: float) -> None:
        size = float(tokens or 1)
        self._sizes.add(size)
        share = tuning.QUEUE_RECENT if self._recent_s else 1.0
        self._recent_s += share * (latency_s - self._recent_s)
        if self._began_s is not None and slot.started_s > self._began_s:
            self._round.add(latency_s, size, self.now)
            if self._round.answers >= self._needs:
                self._end_round(now_s)
        elif not self._sums and self.now == 1 and tokens:  # the first of the run, alone
            self._sums[1] = Sums()
            self._sums[1].add(latency_s, size, 1)
            self._measure()

    def _begin(self, now_s: float) -> None:
        self._began_s, self._round = now_s, Sums()
        share = tuning.QUEUE_SHARE_FIRST if self._searches else tuning.QUEUE_SHARE
        self._needs = max(tuning.QUEUE_ANSWERS, share * self._allowed)

    def _end_round(self, now_s: float) -> None:
        new = self._round
        # Otherwise something else limits the run, and the round says nothing.
        if new.in_flight >= tuning.QUEUE_USED * self._allowed * new.answers and self._record(new):
            self._allow(self._next(), now_s)
        if self._began_s is not None:
            self._begin(now_s)

    def _allow(self, count: float, now_s: float) -> None:
        allowed = max(1, min(self.most, round(count)))
        if allowed < self._allowed:
            self._were = [one for one in self._were if one[0] > now_s - self._timeout_s]
            self._were.append((now_s, self._allowed))
        if allowed != self._allowed:
            self._allowed, self._began_s = allowed, None

    def _record(self, new: Sums) -> bool:
        """Adds the round; False if the server has changed, so that the round mixes two states."""
        n = self._allowed
        if n in self._sums:
            self._turn = has_changed(self._sums[n].measured(self._sizes), new.measured(self._sizes))
            if self._turn:
                self._sums, self._levels, self._base_s = {}, {}, math.inf
                self._searches = False
                return False
            self._sums[n].fade(tuning.QUEUE_KEEP)
            self._sums[n].merge(new)
        else:
            self._sums[n] = new
        for m in [m for m in self._sums if m > n]:
            self._sums[m].fade(tuning.QUEUE_FADE)
            if self._sums[m].answers < tuning.QUEUE_ANSWERS / 2:
                del self._sums[m]
        self._measure()
        for m in out_of_date(self._levels, n):
            del self._sums[m], self._levels[m]
        self._base_s = min(level.latency_s for level in self._levels.values())
        return True

    def _measure(self) -> None:
        self._levels = {n: sums.measured(self._sizes) for n, sums in self._sums.items()}
        self._base_s = min(level.latency_s for level in self._levels.values())
        self._least_s = min(self._least_s, self._base_s)

    def _cut(self, slot: Slot, now_s: float) -> None:
        """Lowers what is in flight after a time-out: at once, and once for all sent before.

        It waited among as many as were allowed at most since it was sent: too many were these, not
        the fewer that are allowed by now.
        """
        since = [were for until_s, were in self._were if slot.started_s <= until_s]
        among = max([self._allowed, *since])
        level = self._levels.get(among)
        most = level.per_s * self._longest_s if level else math.inf
        self._sums = {n: sums for n, sums in self._sums.items() if n < among}
        self._searches, self._grows = False, False
        self._cut_s = now_s
        self._allow(min(self._allowed, among / 2, most), now_s)

    def _next(self) -> float:
        """How many may be in flight next."""
        n, levels, turn = self._allowed, self._levels, self._turn
        self._turn = 0
        # If an answer takes so long even alone, fewer in flight would not help.
        longest_s = max(self._longest_s, tuning.QUEUE_FREE * self._base_s)
        most = min(float(self.most), levels[n].per_s * longest_s)
        best = enough(levels)
        step, probe = tuning.QUEUE_STEP, tuning.QUEUE_PROBE
        if n > most:
            self._searches = self._grows = False
            return most
        if turn:
            return min(_times(n, step), most) if turn > 0 else min(n / step, n - 1)
        growth = self._growth() if n == max(levels) and best * step * 1.05 >= n else 1.0
        if growth < 1.0 and n != self._doubted:  # few answers may look like a knee
            self._doubted = n
            return n
        self._searches = self._searches and growth == tuning.QUEUE_GROWS_FREE
        self._grows = growth > 1.0
        if growth < 1.0:
            return n * growth
        if growth > 1.0 and round(min(_times(n, growth), most)) > n:
            return min(_times(n, growth), most)
        fewer = self._fewer(best)
        if round(fewer) < best:
            return fewer
        if n != _times(best, step):
            self._held = 0
            return _times(best, step)
        self._held += 1
        if self._held < tuning.QUEUE_HOLD:
            return n
        self._held, self._probes_up = 0, not self._probes_up
        return min(_times(n, probe), most) if self._probes_up else best

    def _growth(self) -> float:
        """The factor for the next number in flight, if the highest so far was the best."""
        n, levels = self._allowed, self._levels
        waits = levels[n].latency_s / self._base_s
        if self._searches and waits < tuning.QUEUE_FREE:
            return tuning.QUEUE_GROWS_FREE
        before = max((m for m in levels if m < n), default=None)
        if before is None:
            return tuning.QUEUE_GROWS if self._searches else 1.0
        slope = math.log(levels[n].per_s / levels[before].per_s) / math.log(n / before)
        if slope > tuning.QUEUE_SLOPE:
            return tuning.QUEUE_GROWS
        # From one to the first few, batching in the server raises latency too.
        is_queue = before > 1 or slope < tuning.QUEUE_FLAT
        if self._searches and waits > tuning.QUEUE_DEEP and is_queue:
            return max(tuning.QUEUE_STEP / waits, 1 / tuning.QUEUE_FALLS)
        return tuning.QUEUE_PROBE

    def _fewer(self, best: int) -> float:
        """A number below the best, where latency should begin to grow; `best` if there is none."""
        levels = self._levels
        below = max((m for m in levels if m < best), default=0)
        alone_s = below / levels[below].per_s if below else self._base_s
        knee = tuning.QUEUE_ABOVE * levels[best].per_s * alone_s
        step = tuning.QUEUE_STEP if below else tuning.QUEUE_PROBE
        least = max(_times(below, tuning.QUEUE_STEP), best / tuning.QUEUE_FALLS)
        fewer = max(least, min(knee, best / step))
        return fewer if fewer <= best / step * 1.01 else best


def _times(n: int, factor: float) -> int:
    """The number times the factor, and at least one more."""
    return max(round(n * factor), n + 1)

"""Whether a refusal is the server's limit, or chance: some servers refuse a share of all. Pure.

Above a limit refusals come in waves, and below it there are none. So one refusal alone among many
answers says nothing, unless a wave has shown not long ago that there is a limit; and refusals that
go on though the limit was lowered again and again are a share of all, whatever is sent. Taking
them for a limit would be worst where each stops all for a while: nothing grows meanwhile.
"""

import itertools
import math
from collections import deque

_WAVE = 3  # refusals ...
_WAVE_SENT = 12  # ... among so many attempts
_PAIR_SENT = 20  # two among so many are enough to believe it for the moment
_SURE_S = 600.0  # for how long a wave is remembered
_IN_VAIN = 12  # times in a row that a limit was lowered and refusals came all the same
_LOWER = 0.5  # what was lowered must have come down to this much of where it was
_FALLS = 3  # or so many times, where ...
_FALL = 0.8  # ... each came at so much of where the one before came, and ...
_FEW = 0.3  # ... so few of all are refused. From so little ...
_SPREAD = 2.0  # ... the share is known to a factor of 1 + this / the root of the refusals, ...
_FEW_MOST = 0.4  # ... and it may not be more than this.
_GAPS = 10  # chance leaves uneven gaps between refusals: where so many in a row are even, ...
_EVEN = 0.25  # ... their deviation less than this share of their mean, a limit it is
_RECENT_SENT = 60  # attempts over which a share is taken
_TIMES = 2.5  # the usual share: then it is more than chance
_MORE = 0.1  # or so much more
_LEARN = 0.01  # how fast a usual share follows what is heard
_MOST_BY_CHANCE = 0.9  # above that nothing is let in, and a limit it is
_CHANCE_S = 60.0  # for how long a usual share is remembered
_BARRED_S = 600.0  # for how long a mistake is not made again
_HEARD = 64


class Chance:
    """Hears of each refusal."""

    def __init__(self) -> None:
        self._heard: deque[int] = deque(maxlen=_HEARD)  # attempts sent until each of the last ones
        self._sure_s = -_SURE_S
        self._in_vain = 0
        self._in_vain_sent = 0  # when that began
        self._in_vain_level = 0.0
        self._falls = 0  # of them, those at far less than the fall before
        self._fall_level = 0.0
        self._usual: float | None = None  # the share that is refused by chance
        self._most = 1.0  # a share above this is more than chance in any case
        self._heard_s = 0.0
        self._barred_s = 0.0

    @property
    def is_usual(self) -> bool:
        """Whether refusals are known to be a share of all, whatever is sent."""
        return self._usual is not None

    def is_limit(self, sent: int, level: float, now_s: float, *, in_vain: bool | None) -> bool:
        """Whether one more refusal is the limit's, when so many attempts were sent.

        `level` is what was learnt of the limit so far, in any unit.
        `in_vain`: the limit was lowered before, and nothing was tried beyond it since; null where
        that says nothing, as for what was sent before the limit was lowered.
        """
        heard = self._heard
        heard.append(sent)
        if self._usual is not None and now_s - self._heard_s > _CHANCE_S:
            self._usual = None
        self._heard_s = now_s
        if self._usual is not None:
            share = self._share(sent)
            most = min(max(_TIMES * self._usual, self._usual + _MORE), self._most)
            if share <= most and not self._is_even():
                self._usual += _LEARN * (share - self._usual)
                return False
            self._usual, self._in_vain, self._barred_s = None, 0, now_s + _BARRED_S
            return True
        if len(heard) >= _WAVE and sent - heard[-_WAVE] <= _WAVE_SENT:
            self._sure_s = now_s
        is_sure = now_s - self._sure_s < _SURE_S
        if not is_sure and (len(heard) == 1 or sent - heard[-2] > _PAIR_SENT):
            return False
        if in_vain and self._is_usual_by_now(sent, level, now_s):
            return False
        if in_vain is False:
            self._in_vain = max(0, self._in_vain - 1)
        return True

    def _is_usual_by_now(self, sent: int, level: float, now_s: float) -> bool:
        if not self._in_vain:
            self._in_vain_sent, self._in_vain_level = sent, level
            self._falls, self._fall_level = 0, level
        self._in_vain += 1
        if level <= _FALL * self._fall_level:
            self._falls, self._fall_level = self._falls + 1, level
        share = self._in_vain / max(1, sent - self._in_vain_sent)
        is_few = share <= _FEW
        is_lower = level <= _LOWER * self._in_vain_level
        is_enough = (self._in_vain >= _IN_VAIN and is_lower) or (self._falls >= _FALLS and is_few)
        if not is_enough or now_s < self._barred_s:
            return False
        spread = 1 + _SPREAD / math.sqrt(self._in_vain)
        self._in_vain = 0
        if share > _MOST_BY_CHANCE:
            return False
        self._usual, self._most = (share * spread, _FEW_MOST) if is_few else (share, 1.0)
        return True

    def _share(self, sent: int) -> float:
        return sum(sent - one < _RECENT_SENT for one in self._heard) / _RECENT_SENT

    def _is_even(self) -> bool:
        """Whether refusals come after as many attempts each time; a wave counts as one."""
        waves = sorted(set(self._heard))[-_GAPS - 1 :]
        if len(waves) <= _GAPS:
            return False
        mean = (waves[-1] - waves[0]) / _GAPS
        gaps = (after - before for before, after in itertools.pairwise(waves))
        return sum((gap - mean) ** 2 for gap in gaps) / _GAPS < (_EVEN * mean) ** 2

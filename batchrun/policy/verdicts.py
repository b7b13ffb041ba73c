"""What a limit may answer when an attempt asks to start."""

import math

from msgspec import Struct


class Go(Struct, frozen=True):
    """The attempt may start now."""


class Wait(Struct, frozen=True):
    """Ask again at `until_s`, or sooner when an attempt has ended."""

    until_s: float = math.inf  # on the clock of `now_s`


class Stop(Struct, frozen=True):
    """No attempt may start any more."""

    reason: str


Verdict = Go | Wait | Stop
GO = Go()

"""Claims: objects by which commands on several machines do not write to the same run.

A store has no locks. So a command writes an object of its own, renews it, and lists all claims: of
two commands that begin at the same time, at least one sees the other and gives way.
"""

import math
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.remote.object_stores import ObjectStore, RemoteError, RemoteObject, within
from batchrun.remote.run_link import CLAIMS

T = TypeVar("T")

RENEW_S = 10.0
STALE_S = 60.0  # a claim that was not renewed for so long does not count
SPARE_S = 5.0  # before that, its own command takes it for expired
_ATTEMPTS = 3
_PAUSE_S = 3.0  # at most, between two attempts
_GIVES_WAY_S = 0.2  # in which a command that sees another one deletes its claim
_RELEASE_S = 1.0  # for deleting a claim that could not be checked; it expires anyway
_AGAIN_S = 1.0  # before it is tried again to renew one
_LOOK_S = 1.0  # between looks at the time, which a machine that was suspended has missed
_WAKE_S = 30.0  # for the network to come back after that
_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock_s() -> float:
    """Seconds that are also counted while the machine is suspended."""
    return time.clock_gettime(_CLOCK)


class ClaimLost(RemoteError):  # noqa: N818 - the network's fault, or another command's right
    """Another command may have the run by now."""


class Claimant(Struct, frozen=True):
    """Who has a claim."""

    host: str
    pid: int
    scratch: str  # the folder with the journal


class Claim:
    """The claim of this process, until it is released."""

    def __init__(
        self, store: ObjectStore, prefix: str, scratch: Path, own: Collection[str] = ()
    ) -> None:
        """`scratch`: the folder that the run is written from; it must be locked.

        `own`: the keys of claims that earlier commands may have left which had the folder.
        """
        self._store, self._prefix, self._own = store, prefix, frozenset(own)
        self._about = Claimant(socket.gethostname(), os.getpid(), str(scratch))
        self.key = f"{prefix}{CLAIMS}/{secrets.token_hex(8)}"
        # When it was last renewed for certain, in nanoseconds by the store's clock, and by ours.
        self.renewed_at, self.renewed_s = 0, -math.inf

    @property
    def name(self) -> str:
        """The URL of what it is for."""
        return self._store.name(self._prefix).rstrip("/")

    @property
    def is_fresh(self) -> bool:
        """Whether it was renewed so lately that no other command may take the run."""
        return clock_s() - self.renewed_s < STALE_S - SPARE_S

    def take(self, url: str) -> None:
        """Raises `JobError` if another command has the run; `RemoteError`."""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, _PAUSE_S))  # noqa: S311 - so that two do not keep pace
            began_s = clock_s()
            self.renew()
            try:
                others = self._others()
                # Of several that begin together, the one with the lowest key stays: else it could
                # be that all of them give way.
                is_lowest, until_s = self.key < min(others, default=""), began_s + _PAUSE_S
                while is_lowest and others and clock_s() < until_s:
                    time.sleep(_GIVES_WAY_S)
                    others = self._others()
            except BaseException:
                self.give_up()
                raise
            if not others:
                self.renewed_s = began_s
                return
            self.release()
            if is_lowest:  # it is there to stay
                break
        owner = others[min(others)]
        raise JobError(
            f"{url} is in use by process {owner.pid} on {owner.host} (its journal is in "
            f"{owner.scratch} there); wait until it has ended, or stop it. If it was killed, its "
            f"claim expires after {STALE_S:.0f} s. To use its journal, run the command there"
        )

    def renew(self) -> None:
        """Raises `RemoteError`."""
        self._store.write(self.key, msgspec.json.encode(self._about))

    def written_at(self) -> int | None:
        """When it was written, by the store's clock; None: deleted. Raises `RemoteError`."""
        found = self._store.find(self.key)
        return None if found is None else found.stamp

    def is_alone(self) -> bool:
        """Whether no other command has a claim, however old. Raises `RemoteError`."""
        claims = self._store.listing(f"{self._prefix}{CLAIMS}")
        return all(one.key == self.key or _is_spare(one) for one in claims)

    def release(self) -> None:
        """Raises `RemoteError`."""
        self._store.delete(self.key)

    def give_up(self) -> None:
        """Releases it after an error: not for long, since that must be reported within 30 s."""
        with suppress(RemoteError):
            within(_RELEASE_S, self._store.name(self.key), self.release)

    def _others(self) -> dict[str, Claimant]:
        """Who else has the run, by the keys of their claims; deletes those that do not count."""
        claims = self._store.listing(f"{self._prefix}{CLAIMS}")
        now = self.renewed_at = next((one.stamp for one in claims if one.key == self.key), 0)
        found = {}
        for one in claims:
            if _is_spare(one):
                if one.stamp < now - STALE_S * 1e9:
                    self._store.delete(one.key)
                continue
            owner = None if one.key == self.key else _owner(self._store, one)
            if owner is None:
                continue
            # The folder is locked by us, so whoever had it before has ended. Names prove nothing:
            # containers may have the same host name, and folders of their own at the same path.
            if one.key in self._own or one.stamp < now - STALE_S * 1e9:
                self._store.delete(one.key)
            else:
                found[one.key] = owner
        return found


class ClaimRenewal:
    """Renews a claim until `end`, in a thread; whoever writes or sends under it asks here first.

    What fails is tried again until the claim is too old.
    """

    def __init__(self, claim: Claim) -> None:
        """`claim`: taken."""
        self.lost: str | None = None  # why, in words; nothing more may be written
        # After time enough for another command: whether none has changed anything.
        self.is_untouched: Callable[[], bool] = lambda: False
        self.on_lost: Callable[[], None] = lambda: None  # called in the thread
        self._claim = claim
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def is_certain(self) -> bool:
        """Whether no other command may have the run now. The thread may be late to know."""
        return self.lost is None and self._claim.is_fresh

    def wait(self) -> None:
        """Until it is certain. Raises `ClaimLost` if another command may have the run."""
        while self.lost is None and not self._claim.is_fresh:
            time.sleep(_GIVES_WAY_S)
        if self.lost is not None:
            raise ClaimLost(
                f"{self._claim.name}: its claim could not be renewed, so another command may have "
                f"it by now ({self.lost}); run the same command again"
            )

    def end(self) -> None:
        """Renews it no more, but for a call that nobody answers; it is not released."""
        self._end.set()
        self._thread.join(_RELEASE_S)

    def _watch(self) -> None:
        claim, due_s, end_s = self._claim, self._claim.renewed_s + RENEW_S, -math.inf
        while not self._end.wait(max(min(due_s - clock_s(), _LOOK_S), 0.0)):
            now_s = clock_s()
            if now_s < due_s:
                continue
            until_s = claim.renewed_s + STALE_S - SPARE_S
            if now_s < until_s:
                end_s = until_s
            elif now_s >= end_s:  # this process stood still; perhaps nobody wanted the run
                end_s = now_s + _WAKE_S
            try:
                if not self._renew(end_s):
                    self._lose("another command has taken it over")
                    return
            except Exception as error:  # noqa: BLE001 - others wait for what comes of it
                due_s = clock_s() + _AGAIN_S
                if due_s + _AGAIN_S >= end_s:
                    self._lose(f"the store could not be reached: {error}")
                    return
                continue
            claim.renewed_s, due_s = now_s, now_s + RENEW_S

    def _renew(self, end_s: float) -> bool:
        """Renews the claim; false if another command may have had the run.

        Between a look and a renewal this process or a call may stand still. Another command may
        then delete the claim, and the renewal puts it back: only its age tells. Raises
        `RemoteError`.
        """
        claim = self._claim
        if self._soon(end_s, claim.written_at) is None:
            return False
        if self._end.is_set():
            return True
        self._soon(end_s, claim.renew)
        at = self._soon(end_s, claim.written_at)
        if at is None:
            return False
        if at - claim.renewed_at > STALE_S * 1e9 and not self._soon(end_s, self.is_untouched):
            return False
        claim.renewed_at = at
        return True

    def _soon(self, end_s: float, call: Callable[[], T]) -> T:
        """By then, and in time for another attempt: a library may wait for minutes."""
        left_s = end_s - clock_s()
        return within(max(min(left_s, RENEW_S), 0.0), self._claim.name, call)

    def _lose(self, why: str) -> None:
        self.lost = why
        self._claim.give_up()
        self.on_lost()


def owner_now(store: ObjectStore, prefix: str, now_ns: int) -> Claimant | None:
    """Who has a run, for a reader; by this machine's clock. Raises `RemoteError`."""
    for one in store.listing(f"{prefix}{CLAIMS}"):
        is_old = one.stamp < now_ns - STALE_S * 1e9
        if not is_old and not _is_spare(one) and (owner := _owner(store, one)) is not None:
            return owner
    return None


def _is_spare(claim: RemoteObject) -> bool:
    """Whether it is one that is being written; see `ObjectStore.write`."""
    return claim.key.rpartition("/")[2].startswith(".")


def _owner(store: ObjectStore, claim: RemoteObject) -> Claimant | None:
    """The owner of a claim; None if it was released meanwhile."""
    data = store.read(claim.key)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Claimant)
    except msgspec.MsgspecError as error:
        raise RemoteError(
            f"{store.name(claim.key)}: this object is not a claim of batchrun ({error}); delete "
            "it, or give another place with -o"
        ) from error

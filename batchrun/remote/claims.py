"""Claims: objects by which commands on several machines do not write to the same run.

A store has no locks. So a command writes an object of its own, renews it, and lists all claims: of
two commands that begin at the same time, at least one sees the other and gives way.
"""

import os
import random
import secrets
import socket
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from batchrun.errors import JobError
from batchrun.remote.object_stores import ObjectStore, RemoteError, RemoteObject, within
from batchrun.remote.run_link import CLAIMS

RENEW_S = 10.0
STALE_S = 60.0  # a claim that was not renewed for so long does not count
_ATTEMPTS = 3
_PAUSE_S = 3.0  # at most, between two attempts
_RELEASE_S = 3.0  # for deleting a claim that could not be checked; it expires anyway


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
        # When it was last renewed for certain, in nanoseconds by the store's clock.
        self.renewed_at = 0

    def renewed_by(self, store: ObjectStore) -> "Claim":
        """The same claim, over another connection."""
        other = Claim(store, self._prefix, Path(self._about.scratch))
        other.key, other.renewed_at = self.key, self.renewed_at
        return other

    def take(self, url: str) -> None:
        """Raises `JobError` if another command has the run; `RemoteError`."""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, _PAUSE_S))  # noqa: S311 - so that two do not keep pace
            self.renew()
            try:
                others = self._others()
            except BaseException:
                self.give_up()
                raise
            if not others:
                return
            self.release()
        owner = others[0]
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
        return all(one.key == self.key for one in claims)

    def release(self) -> None:
        """Raises `RemoteError`."""
        self._store.delete(self.key)

    def give_up(self) -> None:
        """Releases it after an error: not for long, since that must be reported within 30 s."""
        with suppress(RemoteError):
            within(_RELEASE_S, self._store.name(self.key), self.release)

    def _others(self) -> list[Claimant]:
        """Who else has the run; deletes claims that no longer count."""
        claims = self._store.listing(f"{self._prefix}{CLAIMS}")
        now = self.renewed_at = next((one.stamp for one in claims if one.key == self.key), 0)
        found = []
        for one in claims:
            owner = None if one.key == self.key else _owner(self._store, one)
            if owner is None:
                continue
            # The folder is locked by us, so whoever had it before has ended. Names prove nothing:
            # containers may have the same host name, and folders of their own at the same path.
            if one.key in self._own or one.stamp < now - STALE_S * 1e9:
                self._store.delete(one.key)
            else:
                found.append(owner)
        return found


def owner_now(store: ObjectStore, prefix: str, now_ns: int) -> Claimant | None:
    """Who has a run, for a reader; by this machine's clock. Raises `RemoteError`."""
    for one in store.listing(f"{prefix}{CLAIMS}"):
        if one.stamp >= now_ns - STALE_S * 1e9 and (owner := _owner(store, one)) is not None:
            return owner
    return None


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

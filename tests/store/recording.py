"""What the store does to a folder, step by step, as the interpreter sees it being done.

Nothing of the store is replaced: a profile hook stops at each system call that it makes, one at a
time over all threads, and looks at what has become of the files.
"""

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

_SYNCS = frozenset((os.fsync, getattr(os, "fdatasync", os.fsync)))
_CALLS = _SYNCS | {
    *(os.open, os.write, os.ftruncate, os.truncate, os.mkdir),
    *(os.rename, os.replace, os.unlink, os.remove, os.close),
}


@dataclass(frozen=True)
class Named:
    """Names of one folder that changed at once; `None` for a name that was deleted."""

    folder: str
    changes: tuple[tuple[str, int | None], ...]  # path to the number of a file or folder


@dataclass(frozen=True)
class Written:
    """A file's content, whole."""

    file: int
    content: bytes


@dataclass(frozen=True)
class Synced:
    """A file or folder is on disk, with what it held when that was asked."""

    file: int
    content: bytes | None  # null for a folder


@dataclass(frozen=True)
class Noted:
    """Something that the one who records wants to know the place of."""

    what: str
    value: Any


Step = Named | Written | Synced | Noted


class Recording:
    """Records while it is entered. Paths are relative to the folder, which is file 0."""

    def __init__(self, folder: Path) -> None:
        self.steps: list[Step] = []
        self._folder = folder
        self._names: dict[str, int] = {}
        self._is_folder: set[int] = {0}
        self._contents: dict[int, bytes] = {}
        self._numbers: dict[int, int] = {folder.stat().st_ino: 0}  # of what exists, by inode
        self._count = 0
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._syncing: tuple[int, bytes | None] | None = None
        self._error: BaseException | None = None
        self._look()
        self.start = tuple(self.steps)  # what was there before

    def __enter__(self) -> Self:
        self.steps.clear()
        threading.setprofile(self._hook)
        sys.setprofile(self._hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        self._look()
        if self._error is not None:
            raise self._error

    def note(self, what: str, value: Any) -> None:
        self.steps.append(Noted(what, value))

    def synced(self, name: str) -> int:
        """How often a file of this name has been synced so far."""
        number = self._names.get(name)
        return sum(isinstance(step, Synced) and step.file == number for step in list(self.steps))

    def _hook(self, frame: FrameType, event: str, call: Any) -> None:
        if not event.startswith("c_") or call not in _CALLS:
            return
        try:
            if event == "c_call":
                self._lock.acquire()
                if call in _SYNCS:
                    self._look()
                    self._syncing = self._about_to_sync(frame)
                return
            self._look()
            if self._syncing is not None and call in _SYNCS and event == "c_return":
                self.steps.append(Synced(*self._syncing))
            self._syncing = None
        except Exception as error:  # noqa: BLE001 - raised where the recording ends
            self._error = self._error or error
        if event != "c_call":
            self._lock.release()

    def _about_to_sync(self, frame: FrameType) -> tuple[int, bytes | None] | None:
        """The file that is about to be synced. All syncs are made in `disk.py`, of a `handle`."""
        number = self._numbers.get(os.fstat(frame.f_locals["handle"]).st_ino)
        if number is None:
            return None  # outside of the folder, or deleted
        return number, None if number in self._is_folder else self._contents[number]

    def _look(self) -> None:
        """Whatever changed since the last look becomes steps."""
        names: dict[str, int] = {}
        contents: dict[int, bytes] = {}
        numbers = {self._folder.stat().st_ino: 0}
        for path in self._folder.rglob("*"):
            inode = path.stat().st_ino
            number = self._numbers.get(inode)
            if number is None:
                number = self._count = self._count + 1
            numbers[inode] = number
            names[path.relative_to(self._folder).as_posix()] = number
            if path.is_dir():
                self._is_folder.add(number)
            else:
                contents[number] = path.read_bytes()
        self._compare(names, contents)
        self._names, self._contents, self._numbers = names, contents, numbers

    def _compare(self, names: dict[str, int], contents: dict[int, bytes]) -> None:
        before = self._names
        changed: dict[str, dict[str, int | None]] = {}
        for path in sorted(before.keys() | names.keys()):
            if before.get(path) != names.get(path):
                changed.setdefault(path.rpartition("/")[0], {})[path] = names.get(path)
        self.steps += [
            Written(number, content)
            for number, content in contents.items()
            if content != self._contents.get(number)
        ]
        self.steps += [Named(folder, tuple(each.items())) for folder, each in changed.items()]

"""What a disk may hold after a crash at any step of a recording.

The death of a process leaves what was done. A loss of power leaves what was synced; of the rest,
each change of names and each piece of a file's content may be there or not, in any order.
"""

import random
from enum import StrEnum
from pathlib import Path

from tests.store.recording import Named, Step, Synced, Written

Tree = dict[str, bytes | None]  # paths to contents; null for a folder
_BLOCK = 512


class Loss(StrEnum):
    """What becomes of what was not synced."""

    NOTHING = "the process dies"
    HALF_A_WRITE = "the process dies amid a write"
    ALL = "power fails: all is lost"
    CONTENTS = "power fails: contents are lost, names are kept"
    NAMES = "power fails: names are lost, contents are kept"
    SOME = "power fails: some is lost"
    BLOCKS = "power fails: blocks are lost, sizes are kept"


class Disk:
    """The files of a recorded folder, as far as they are known to be on disk."""

    def __init__(self, start: tuple[Step, ...]) -> None:
        """`start` is on disk."""
        self._names: dict[str, int] = {}
        self._safe_names: dict[str, int] = {}
        self._waiting: list[Named] = []
        self._contents: dict[int, bytes] = {}
        self._safe_contents: dict[int, bytes] = {}
        self._written: tuple[int, bytes] | None = None  # by the last step: file, content before
        for step in start:
            self.take(step)
        self._safe_names, self._safe_contents = dict(self._names), dict(self._contents)
        self._waiting = []

    def take(self, step: Step) -> None:
        """One step further."""
        self._written = None
        match step:
            case Named():
                _apply(self._names, step)
                self._waiting.append(step)
            case Written(file, content):
                self._written = (file, self._contents.get(file, b""))
                self._contents[file] = content
            case Synced(file, content) if content is not None:
                self._safe_contents[file] = content
            case Synced(file):
                folder = next((path for path, at in self._names.items() if at == file), "")
                for named in self._waiting:
                    if named.folder == folder:
                        _apply(self._safe_names, named)
                self._waiting = [named for named in self._waiting if named.folder != folder]

    def after(self, loss: Loss, dice: random.Random) -> Tree:
        """What is found after a crash at this step."""
        names, contents = dict(self._safe_names), dict(self._contents)
        for named in self._waiting:
            if _is_kept(loss, dice):
                _apply(names, named)
        if loss is Loss.HALF_A_WRITE and self._written is not None:
            file, before = self._written
            contents[file] = _partly(before, contents[file], dice)
        elif loss not in (Loss.NOTHING, Loss.HALF_A_WRITE, Loss.NAMES):
            for file, content in contents.items():
                contents[file] = _after_loss(
                    loss, self._safe_contents.get(file, b""), content, dice
                )
        return {
            path: contents.get(file) for path, file in names.items() if _is_reached(path, names)
        }


def _is_reached(path: str, names: dict[str, int]) -> bool:
    """Whether the folder that it is in is there."""
    folder = path.rpartition("/")[0]
    return not folder or (folder in names and _is_reached(folder, names))


def write_tree(tree: Tree, folder: Path) -> None:
    """The folder, which must not be there, holds these files."""
    folder.mkdir()
    for path, content in sorted(tree.items()):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def read_tree(folder: Path) -> Tree:
    """What a folder holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def _apply(names: dict[str, int], named: Named) -> None:
    for path, file in named.changes:
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file


def _is_kept(loss: Loss, dice: random.Random) -> bool:
    """Whether a change of names outlives a crash though nobody synced its folder."""
    if loss is Loss.SOME:
        return dice.random() < 0.5
    return loss not in (Loss.ALL, Loss.NAMES)


def _after_loss(loss: Loss, safe: bytes, content: bytes, dice: random.Random) -> bytes:
    """A file's content after a loss of power; `safe` is what was last synced of it."""
    if safe == content or loss in (Loss.ALL, Loss.CONTENTS):
        return safe
    if loss is Loss.SOME:
        return dice.choice((safe, content, _partly(safe, content, dice)))
    return _with_holes(safe, content, dice)


def _partly(before: bytes, after: bytes, dice: random.Random) -> bytes:
    """Content that was growing, cut anywhere between; what was cut or replaced is one or other."""
    if not after.startswith(before):
        return dice.choice((before, after))
    return after[: dice.randint(len(before), len(after))]


def _with_holes(safe: bytes, content: bytes, dice: random.Random) -> bytes:
    """Content of its full size, with zeros in place of some blocks that were not synced."""
    if not content.startswith(safe):
        return dice.choice((safe, content))
    whole = bytearray(content)
    for at in range(len(safe), len(content), _BLOCK):
        if dice.random() < 0.5:
            end = min(at + _BLOCK, len(content))
            whole[at:end] = bytes(end - at)
    return bytes(whole)

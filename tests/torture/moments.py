"""The moments at which a run is killed, told by what it writes; a seed strays a little from them.

No moment waits for a time alone but the first, which lies before anything is written.
"""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from subprocess import Popen

from batchrun.store.files import (
    JOURNAL,
    RESPONSES,
    TOOL_CALLS,
    WRITER,
    id_of,
    numbered,
    open_name,
)
from batchrun.store.journal import HEAD_BYTES
from batchrun.store.unfinished import read_open
from tests.torture.server import Server
from tests.waiting import HANG_S

_LOOK_EVERY_S = 0.0005
_SPENT_S = 0.4  # about what a process needs until it plans


class Moment(StrEnum):
    """Where in a run it is killed."""

    START = "starting"  # before anything is written
    RESUMING = "resuming"  # the lock is taken: recovery of what the last kill left, first reading
    PLANNING = "planning"
    FIRST_ANSWER = "first answer"
    STEADY = "sending"
    SEALING = "sealing"
    RETRYING = "retrying"
    STOPPING = "stopping"  # by SIGTERM: it waits for what is in flight, then seals
    ASKING_AGAIN = "asking again"  # an answer is on disk, and asked for once more
    STOP = "a stop"  # by SIGTERM alone, to its end
    FULL_DISK = "full disk"  # files cannot grow for a while
    FULL_DISK_STOP = "full disk at a stop"  # the same, after SIGINT
    NO_DESCRIPTOR = "no descriptor"  # no file can be opened for a while: no next segment
    TWO_STARTS = "two starts"  # a second command on the directory, then the first is killed


@dataclass
class Scene:
    """One process on its run directory."""

    run: Path
    process: Popen[str]
    server: Server
    faults: int  # that the server had met before this process
    newest: int  # the highest number of a segment or part before this process
    began_at: float  # on the wall clock, as files tell it


def newest(run: Path) -> int:
    """The highest number that a segment or a part has; 0 where there is none."""
    places = ((JOURNAL, ".log"), (TOOL_CALLS, ".parquet"), (RESPONSES, ".parquet"))
    last = [names[-1] for place, ending in places if (names := numbered(run / place, ending))]
    return max((of.number for of in map(id_of, last)), default=0)


def come_about(moment: Moment, scene: Scene, dice: random.Random) -> bool:
    """Whether the moment came before the process ended by itself."""
    match moment:
        case Moment.START:
            time.sleep(dice.uniform(0.0, _SPENT_S))
        case Moment.RESUMING:
            if _wait(lambda: is_holder(scene), scene):
                time.sleep(dice.uniform(0.0, 0.02))
        case Moment.PLANNING:
            if scene.run.exists():
                _wait(lambda: is_holder(scene), scene)
            else:
                time.sleep(_SPENT_S)
            time.sleep(dice.uniform(0.0, 0.3))
        case Moment.FIRST_ANSWER:
            _wait(lambda: _has_answer(scene), scene)
        case Moment.STEADY:
            segments = dice.randint(1, 4)
            _wait(lambda: newest(scene.run) > scene.newest + segments, scene)
            time.sleep(dice.uniform(0.0, 0.05))
        case Moment.SEALING:
            _wait(lambda: newest(scene.run) > scene.newest, scene)
            steps = dice.choice((_writes_parts, _has_intent, is_sealing))
            _wait(lambda: steps(scene.run), scene)
        case Moment.RETRYING:
            _wait(lambda: _is_retrying(scene), scene)
            time.sleep(dice.uniform(0.0, 0.1))
        case Moment.ASKING_AGAIN:
            _wait(lambda: _asks_again(scene), scene)
            time.sleep(dice.uniform(0.0, 0.05))
        case Moment.TWO_STARTS:
            time.sleep(dice.uniform(0.0, _SPENT_S))
        case _:
            _wait(lambda: _has_answer(scene), scene)
            time.sleep(dice.uniform(0.0, 0.2))
    return scene.process.poll() is None


def stopping(scene: Scene, dice: random.Random) -> None:
    """Waits until a run that was asked to stop is about to land, or at its last seal."""
    step = dice.choice((_writes_parts, _has_intent))
    _wait(lambda: step(scene.run) or _says(scene, "state") == "stopping", scene)
    time.sleep(dice.uniform(0.0, 0.05))


def is_sealing(run: Path) -> bool:
    """Whether a seal is under way."""
    return _writes_parts(run) or _has_intent(run)


def _wait(holds: Callable[[], object], scene: Scene) -> bool:
    """Whether it came to hold while the process ran."""
    end_s = time.monotonic() + HANG_S
    while not holds():
        if scene.process.poll() is not None:
            return False
        assert time.monotonic() < end_s, "the moment never came"
        time.sleep(_LOOK_EVERY_S)
    return True


def is_holder(scene: Scene) -> bool:
    """Whether the process has the run directory: its number stands in the lock."""
    try:
        words = (scene.run / "lock").read_text().split()
    except FileNotFoundError:
        return False
    return bool(words) and words[-1] == str(scene.process.pid)


def _has_answer(scene: Scene) -> bool:
    """Whether its journal holds more than a header."""
    if newest(scene.run) <= scene.newest:
        return False
    name = numbered(scene.run / JOURNAL, ".log")[-1:]
    try:
        data = (scene.run / JOURNAL / name[0]).read_bytes() if name else b""
    except FileNotFoundError:  # sealed meanwhile: it held answers
        return True
    return len(data) > HEAD_BYTES + int.from_bytes(data[4:8], "little")


def _asks_again(scene: Scene) -> bool:
    """Whether this process has put an answer on record that it asks for again."""
    path = scene.run / JOURNAL / open_name(WRITER)
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    return stat.st_mtime >= scene.began_at and any(True for _ in read_open(scene.run))


def _writes_parts(run: Path) -> bool:
    return _has_name(run / RESPONSES, ".tmp") or _has_name(run / TOOL_CALLS, ".tmp")


def _has_intent(run: Path) -> bool:
    return _has_name(run / JOURNAL, ".intent")


def _has_name(folder: Path, ending: str) -> bool:
    try:
        return any(entry.name.endswith(ending) for entry in folder.iterdir())
    except FileNotFoundError:
        return False


def _is_retrying(scene: Scene) -> bool:
    """Whether a row waits between two tries: by the run's own word, or a fault has just struck."""
    return bool(_says(scene, "retrying")) or scene.server.counts().faults > scene.faults


def _says(scene: Scene, what: str) -> object:
    """What `live.json` says, once this process has written it."""
    path = scene.run / "live.json"
    try:
        if path.stat().st_mtime < scene.began_at:
            return None
        said: object = json.loads(path.read_bytes())[what]
    except FileNotFoundError:
        return None
    return said

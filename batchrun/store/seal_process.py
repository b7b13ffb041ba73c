"""A process of its own that seals: the event loop's thread shares the interpreter with nobody.

The two talk over the child's standard streams, a line of JSON each: the record of the run, then
for each seal the segments' names, answered by null or by what went wrong. The child holds the
directory's lock too, and ends as soon as nobody is left to ask: with the run's end or its kill.
"""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import msgspec

from batchrun.errors import StoreError
from batchrun.records import RunRecord
from batchrun.store.seal import seal
from batchrun.store.storable import encode_json

_MAIN = (
    "from batchrun.lean_arrow import take_arrow_lean; take_arrow_lean(); "
    "from batchrun.store.seal_process import serve; serve()"
)
# Where the two share one core, the event loop's longest stall is 12 ms so, and 18 with 0.
_NICE = 5
_YOUNG = 50_000  # objects made before the garbage collector looks at them: a tenth of a seal's CPU


class ProcessEnded(Exception):  # noqa: N818 - what to do then is the caller's to say
    """The process is gone, and what it had begun may be done, half done or not begun."""


class SealProcess:
    """The process, as the run's own sees it; for one thread."""

    def __init__(self, folder: Path, record: RunRecord, lock: int) -> None:
        """Starts it. Raises `OSError`."""
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and this code
            [sys.executable, "-P", "-c", _MAIN, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            pass_fds=(lock,),
            process_group=0,  # what the terminal sends is for the run's process
        )
        with suppress(BrokenPipeError):  # the first seal will tell
            self._say(encode_json(record))

    def seal(self, segments: Sequence[str]) -> None:
        """`seal`, done over there. Raises `StoreError` and `ProcessEnded`."""
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        try:
            self._say(encode_json(segments))
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            self.close()
            raise ProcessEnded
        message = msgspec.json.decode(answer, type=str | None)
        if message is not None:
            raise StoreError(message)

    def close(self) -> None:
        """The process has ended when this returns."""
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()


def serve() -> None:
    """The process itself: seals what it is told, and never returns."""
    os.nice(_NICE)
    gc.freeze()
    gc.set_threshold(_YOUNG)
    folder = Path(sys.argv[1])
    record = msgspec.json.decode(sys.stdin.buffer.readline(), type=RunRecord)
    asked: SimpleQueue[list[str]] = SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while True:
        message = _seal(folder, record, asked.get())
        try:
            sys.stdout.buffer.write(encode_json(message) + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the run was killed: nobody is there to be told
            os._exit(0)


def _listen(asked: "SimpleQueue[list[str]]") -> None:
    for line in sys.stdin.buffer:
        asked.put(msgspec.json.decode(line, type=list[str]))
    os._exit(0)  # whatever is half done, the next command finishes


def _seal(folder: Path, record: RunRecord, segments: Sequence[str]) -> str | None:
    """What went wrong; null if nothing did."""
    try:
        seal(folder, record, segments)
    except StoreError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a bug must end the run, not hide
        return in_words(error, folder, segments)
    return None


def in_words(bug: Exception, folder: Path, segments: Sequence[str]) -> str:
    """What a user is told of a bug in a seal."""
    return (
        f"{folder}: sealing {segments[-1]} failed ({type(bug).__name__}: {bug});"
        " the journal still holds its rows. Please report this"
    )

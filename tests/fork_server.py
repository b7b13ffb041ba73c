"""Runs batchrun's commands in forks of one process that has imported what they import.

Each is a process of its own, as `python -m batchrun` is, and starts in a tenth of the time.

A request is JSON (words, folder, environment) with the three standard streams; the answer is the
exit code, negative for a signal.
"""

import gc
import json
import os
import pkgutil
import socket
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import batchrun
from batchrun.cli.main import main
from batchrun.formats.arrow_import import prepare_arrow_import

MOST_BYTES = 1 << 20  # of a request
_LIBRARIES = ("aiohttp", "duckdb", "jinja2.sandbox", "pyarrow.dataset", "rich.live")


def _serve(channel: socket.socket) -> None:
    while True:
        request, streams, _, _ = socket.recv_fds(channel, MOST_BYTES, 3)
        if not request:  # nobody is left to ask
            return
        pid = os.fork()
        if not pid:
            channel.close()
            words, folder, environment = json.loads(request)
            _run(words, folder, environment, streams)
        for stream in streams:
            os.close(stream)
        channel.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _run(
    words: list[str], folder: str, environment: dict[str, str], streams: Sequence[int]
) -> NoReturn:
    code = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.argv[:] = ["batchrun", *words]
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - as the interpreter ends with it
        traceback.print_exc()
    finally:  # to take down what was imported would take as long as to import it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    prepare_arrow_import()
    for module in pkgutil.walk_packages(batchrun.__path__, "batchrun."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for library in _LIBRARIES:
        import_module(library)
    gc.freeze()  # else a collection in a fork writes to all that the forks share
    _serve(socket.socket(fileno=int(sys.argv[1])))

"""Runs batchrun's commands in forks of one process that has imported what they import.

Each is a process of its own, as `python -m batchrun` is, and starts in a tenth of the time.

A request is JSON (words, folder, environment) with the three standard streams; the answers are the
process's number and its exit code, negative for a signal. With a socket as the fourth stream, both
come there while others are served, and the process ends with its other end at the latest.
"""

import gc
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import batchrun
from batchrun.cli.main import main
from batchrun.formats.arrow_import import prepare_arrow_import

MOST_BYTES = 1 << 20  # of a request
_LIBRARIES = ("aiohttp", "duckdb", "jinja2.sandbox", "pyarrow.dataset", "rich.live")


def _serve(channel: socket.socket) -> None:
    keepers: list[int] = []
    while True:
        request, streams, _, _ = socket.recv_fds(channel, MOST_BYTES, 4)
        if not request:  # nobody is left to ask
            return
        keepers = [keeper for keeper in keepers if not os.waitpid(keeper, os.WNOHANG)[0]]
        pid = os.fork()
        if not pid:
            channel.close()
            words, folder, environment = json.loads(request)
            for control in streams[3:]:
                _keep(socket.socket(fileno=control), streams[:3])
            _run(words, folder, environment, streams[:3])
        for stream in streams:
            os.close(stream)
        if len(streams) > 3:
            keepers.append(pid)
            continue
        channel.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _keep(control: socket.socket, streams: Sequence[int]) -> None:
    """Returns in a fork; says how that is doing, and ends it once nobody listens any more.

    Until then its number belongs to nobody else.
    """
    pid = os.fork()
    if not pid:
        control.close()
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the fork
    for stream in streams:
        os.close(stream)
    with suppress(OSError):
        control.send(str(pid).encode())
        ended = os.pidfd_open(pid)
        if ended in select.select((ended, control.fileno()), (), ())[0]:
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert found is not None
            has_ended = found.si_code == os.CLD_EXITED
            control.send(str(found.si_status if has_ended else -found.si_status).encode())
        control.recv(1)
    os.kill(pid, signal.SIGKILL)
    os._exit(0)


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
        # Those of before know whether what they were opened on is a file.
        sys.stdout = open(1, "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115 - open to the end
        sys.stderr = open(2, "w", 1, encoding=sys.stderr.encoding, closefd=False)  # noqa: SIM115
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
        # Ray reads the environment when it is imported, and starts threads.
        if not module.name.endswith(("__main__", "executors.ray")):
            import_module(module.name)
    for library in _LIBRARIES:
        import_module(library)
    gc.freeze()  # else a collection in a fork writes to all that the forks share
    _serve(socket.socket(fileno=int(sys.argv[1])))

"""Draws docs/_static/run.svg from a real run against the simulator, in a terminal of its own.

    python docs/make_picture.py

The display redraws itself four times a second; the picture shows the plan and one of its frames.
"""

import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE = Path(__file__).with_name("_static") / "run.svg"
COLUMNS = 100
ROWS = 3_000
SERVER = ("--port", "0", "--latency", "0.8", "--rpm", "9000", "--fault", "500_json=0.01")
SHOWN = 60  # per cent done in the frame that is shown
WORDS = (
    *("run", "prompts.jsonl", "--prompt", "{{ question }}", "--model", "gpt-6.1-terra"),
    *("--set", "max_output_tokens=2000", "--max-cost", "20"),
)
_REDRAWN = re.compile(r"(?:\x1b\[2K(?:\x1b\[1A)?){2,}")  # the display wipes its lines
_ERASED = re.compile(r"[^\n]*\x1b\[K")  # lines of what is done before there is a plan
_FIRST_FRAME = re.compile(r"\n(?:\x1b\[[0-9;]*m)*running\b")
_PRIVATE = re.compile(r"\x1b\[\?\d+[hl]")  # cursor off and on


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = ({"id": f"q{n}", "question": f"What is {n} squared?"} for n in range(ROWS))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(folder, "prompts.jsonl").write_text(text, encoding="utf-8")
        server = subprocess.Popen(
            [sys.executable, "-m", "batchrun", "simulate", *SERVER],
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        try:
            assert server.stdout is not None
            output = _typed(folder, server.stdout.readline().strip())
        finally:
            server.terminate()
            server.wait()
    output = _ERASED.sub("", _PRIVATE.sub("", output)).replace("\r", "")
    plan, *frames = _REDRAWN.split(output)
    plan = _FIRST_FRAME.split(plan)[0]
    frame = min(frames, key=lambda frame: abs(_percent(frame) - SHOWN)).strip("\n")
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(Text(f"$ {shlex.join(('batchrun', *WORDS))}", style="bold"))
    console.print(Text.from_ansi(f"{plan}\n{frame}"))
    console.save_svg(str(PICTURE), title="batchrun run", theme=MONOKAI)


def _typed(folder: str, base_url: str) -> str:
    """What the run writes to its terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        path = Path(__file__).resolve().parent.parent
        os.environ["PYTHONPATH"] = str(path)
        os.environ |= {"OPENAI_BASE_URL": base_url, "TERM": "xterm-256color"}
        os.execv(sys.executable, [sys.executable, "-m", "batchrun", *WORDS])  # noqa: S606 - no shell
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    pieces = []
    while True:
        try:
            piece = os.read(terminal, 65_536)
        except OSError:  # the other end is closed
            break
        pieces.append(piece)
    os.waitpid(child, 0)
    return b"".join(pieces).decode()


def _percent(frame: str) -> int:
    found = re.search(r"(\d+)%", frame)
    return int(found[1]) if found else 0


if __name__ == "__main__":
    main()

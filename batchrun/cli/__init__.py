"""The commands: parse, call one function, print, exit. The door is `main`."""

from batchrun.cli.main import main as main

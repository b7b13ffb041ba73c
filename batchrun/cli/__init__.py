"""The commands: parse, call one function, print, exit. The entry point is `main`."""

from batchrun.cli.main import main as main

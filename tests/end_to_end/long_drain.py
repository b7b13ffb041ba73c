"""batchrun that waits long for what is in flight: `long_drain.py SECONDS run ...`."""

import sys

from batchrun.cli import main
from batchrun.runner import engine

engine.DRAIN_S = float(sys.argv.pop(1))
main()

"""batchrun with a short patience: `soon_notified.py STALL_S SEND_S run ...`."""

import sys
from functools import partial

from batchrun.cli import main
from batchrun.runner import notified

stall_s, send_s = float(sys.argv.pop(1)), float(sys.argv.pop(1))
notified.notified = partial(notified.notified, stall_s=stall_s, send_s=send_s)
main()

"""batchrun that waits FACTOR times as long for stores and for the Hub: `patience.py FACTOR …`."""

import sys

from batchrun.cli.main import main
from batchrun.remote import hub, object_stores

_WAITS = "_CONNECT_S", "_SILENCE_S", "_FIRST_SILENCE_S", "_CALL_S", "_FIRST_CALL_S"

factor = float(sys.argv.pop(1))
for module in (hub, object_stores):
    settings = vars(module)
    settings |= {name: settings[name] * factor for name in _WAITS if name in settings}
main()

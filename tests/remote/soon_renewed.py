"""batchrun that renews its claim and uploads small files every S seconds: `soon_renewed.py S …`."""

import sys

from batchrun.cli.main import main
from batchrun.remote import claims, store_run

every_s = float(sys.argv.pop(1))
vars(claims).update(RENEW_S=every_s, _AGAIN_S=every_s)
vars(store_run).update(_UPLOAD_EVERY_S=every_s)
main()

"""``python -m keepalive_worker.top`` is ``keepalive-top``."""

import sys

from keepalive_worker.top.command import main

sys.exit(main())

"""The Celery application in a hurry, on a host whose clock jumps: by as many seconds as the file JUMPS_BY names, read
again and again. Beat is in a hurry, too.
"""

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import time_machine

from tests.hasty import app, attempts

__all__ = ["app"]

app.conf.beat_max_loop_interval = 1
app.conf.beat_schedule["beat"]["schedule"] = 1.0

attempts.PAGING = attempts.Times(deadline=12, lease=15)  # so that a worker that starts can still come too early

_true, _began = datetime.now(UTC), time.monotonic()
_clock = time_machine.travel(_true, tick=True).start()


def jump() -> None:
    file, by = Path(os.environ["JUMPS_BY"]), 0.0
    while True:
        wanted = float(file.read_text() or 0) if file.exists() else 0.0
        if wanted != by:
            by = wanted
            _clock.move_to(_true + timedelta(seconds=time.monotonic() - _began + by), tick=True)
        threading.Event().wait(0.05)


threading.Thread(target=jump, name="jump", daemon=True).start()

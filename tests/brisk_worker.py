"""The real worker, but for the minutes of an incident, which are seconds here."""

from __future__ import annotations

import datetime as dt
import sys

from jobs import incidents, ingest
from jobs.app import application
from redisq.service import worker_main

if __name__ == "__main__":
    incidents.PROBE = incidents.CONFIRM = incidents.CHECK = dt.timedelta(seconds=1)
    ingest.INCIDENT_WAIT = 2.0
    application.open()
    sys.exit(worker_main(application.registry))

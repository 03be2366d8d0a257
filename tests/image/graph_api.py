"""A Graph API with one page for a machine of the tests: `graph_api.py PORT PAGE TOKEN_FILE`, until it is killed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from jobs.simulator import SimulatedPage, Simulator

if __name__ == "__main__":
    port, page, token_file = sys.argv[1:]
    with Simulator(pages=[SimulatedPage(page, "acme page", Path(token_file).read_text().strip())], port=int(port)):
        signal.pause()

"""Runs the stand-ins as a process of their own: prints their settings as one line of JSON, serves until SIGTERM."""

import argparse
import json
import signal
import threading
from pathlib import Path

from tests.standins import Standins


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.standins", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port-base", type=int, default=0, help="the first of six ports; 0: free ones")
    parser.add_argument("--ledger", type=Path, help="append each accepted effect to this file")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Standins(options.ledger, host=options.host, port_base=options.port_base) as standins:
        print(json.dumps({standin.name: standin.settings() for standin in standins}), flush=True)
        stop.wait()


if __name__ == "__main__":
    main()

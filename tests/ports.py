"""Ports for what listens later, or listens again: nobody else gets one by chance meanwhile."""

import itertools
import os
import random
import socket
from contextlib import suppress

# Below those that a kernel gives to whoever asks for any port, each outgoing connection among them.
FIRST, BEYOND = 20_000, 32_000
# Processes that test at the same time draw from different ports.
WORKER, WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16, 16
_drawn = itertools.cycle(random.Random(os.urandom(8)).sample(range(FIRST + WORKER, BEYOND, WORKERS), k=700))


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens. One process is not told it again for a long while."""
    for port in itertools.islice(_drawn, 700):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    raise OSError("No port is free.")

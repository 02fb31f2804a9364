"""Ports for what listens later, or listens again: nobody else gets one meanwhile."""

import os
import random
import socket
import sys

# Below those that a kernel gives to whoever asks for any port, each outgoing connection among them.
FIRST, BEYOND = 20_000, 32_000
_dice = random.Random(os.urandom(8))
_held: list[socket.socket] = []


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens. As long as this process lives, it is given to nobody who asks for a free one.

    Linux lets a server that reuses addresses, as all do, listen on what we hold and do not listen on.
    """
    for port in _dice.sample(range(FIRST, BEYOND), k=BEYOND - FIRST):
        probe = socket.socket()
        try:
            probe.bind((host, port))
        except OSError:
            probe.close()
            continue
        if sys.platform == "linux":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _held.append(probe)
        else:
            probe.close()
        return port
    raise OSError("No port is free.")

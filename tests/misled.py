"""The Celery application in a hurry, misled: names are answered as MISLED_NAMES says (JSON: by name the addresses of
each answer in turn, again and again), and none but the certificates in the file MISLED_CA are trusted.
"""

import json
import os
import socket
import threading

import requests

from tests.hasty import app

__all__ = ["app"]

_answers: dict[str, list[list[str]]] = json.loads(os.environ.get("MISLED_NAMES", "{}"))
_lock = threading.Lock()
_resolve = socket.getaddrinfo


def misled(host, port, *args, **options):
    with _lock:
        answers = _answers.get(host)
        if not answers:
            return _resolve(host, port, *args, **options)
        addresses = answers.pop(0)
        answers.append(addresses)
    return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (ip, port)) for ip in addresses]


socket.getaddrinfo = misled
if ca := os.environ.get("MISLED_CA"):
    requests.certs.where = lambda: ca

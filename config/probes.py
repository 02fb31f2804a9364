"""Tests a platform's connection with the settings that are stored."""

from dataclasses import dataclass

from config.changes import egress
from config.current import current
from platforms.contract import PlatformError
from platforms.http import Caller
from platforms.sockets import clock

DEADLINE_SECONDS = 10.0


@dataclass(frozen=True)
class Probe:
    ok: bool
    message: str
    milliseconds: int


def test_platform(name: str) -> Probe:
    """Asks the platform now; whatever it says is the result. Creates nothing there."""
    config = current().platforms[name]
    if config.missing:
        return Probe(False, f"Not configured: {', '.join(config.missing)} missing.", 0)
    secrets = [config.settings[f.name] for f in config.platform.fields if f.secret and config.settings.get(f.name)]
    started = clock()
    caller = Caller(egress=egress(), seconds=DEADLINE_SECONDS, secrets=secrets, started=started)
    try:
        message, ok = config.platform.test(caller, config.settings), True
    except PlatformError as error:
        message, ok = error.message, False
    return Probe(ok, message, round((clock() - started) * 1000))

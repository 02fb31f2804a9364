"""Stand-ins for the platforms we talk to: strict, stateful, on real sockets, with faults on demand.

    with Standins() as s:
        settings = s.settings("jira")           # what the product must be configured with
        ...                                     # let the product work
        assert s.pagerduty.pages == 1           # new alerts
        assert not s.slack.shown("mention")     # nothing hostile was rendered

State (Python attributes, or `GET /_state` as JSON):
    pagerduty.alerts    by dedup_key: list of Alert (state triggered|acknowledged|resolved, severity, summary, events)
    pagerduty.pages, opsgenie.pages    new alerts
    opsgenie.alerts     by alias: list of OpsAlert (state open|closed, acknowledged, count, priority, notes ...)
    jira.issues         by key: Issue (status, category, labels, text, comments, history ...)
    servicenow.records  by sys_id: dict of strings; servicenow.journal by sys_id: work notes and comments
    slack.messages      list of Message (text, blocks, shown: all that people read)
    llm.requests        the bodies of accepted generations
    each: seen (every request), effects (what the ledger says), rendered / shown(kind): mention, link, autolink, html,
    markup: what people would see that is not plain text

Faults: `s.jira.fault(kind, times=1, path=None, method=None, skip=0, work=..., **options)` or `POST /_faults` with the
same names. `times=None` lasts until `clear_faults()`; `path` is a regular expression; `work`: carry the request out all
the same (lost, late and drip do so by themselves). Kinds and options: `faults.KINDS`. `down()` and `up()` close and
reopen the port. Attributes: `rate_limit` (n a second, or (n, seconds)), `lag` (Jira: a new issue is hidden from search;
OpsGenie: a request is not processed yet), and what each module lists in `options`; over HTTP `POST /_options`.
`POST /_reset` or `reset()` empties all but those attributes; `settle()` before it, lest a request that somebody has
given up be carried out after it. `GET /_counts`: how many effects of each kind, for when
the state has grown large. `GET /_arrivals`: the latest requests, each with the moment at which its first byte was here.

Ledger: with `Standins(ledger=path)` each accepted effect is a JSON line, there before the client hears of it.

As a process: `python -m tests.standins --port-base 19000 [--ledger FILE]` prints the settings as one line of JSON and
serves until SIGTERM; ports are given in the order pagerduty, jira, servicenow, opsgenie, slack, llm.
"""

from collections.abc import Iterator
from pathlib import Path

from tests.standins.jira import Jira
from tests.standins.llm import Model
from tests.standins.opsgenie import OpsGenie
from tests.standins.pagerduty import PagerDuty
from tests.standins.servicenow import ServiceNow
from tests.standins.slack import Slack
from tests.standins.standin import Ledger, Standin

__all__ = ["Standins"]


class Standins:
    """All six, started together. `port_base` 0: a free port for each."""

    NETWORKS = ("127.0.0.0/8",)  # what the product must be allowed to reach

    def __init__(self, ledger: Path | None = None, *, host: str = "127.0.0.1", port_base: int = 0) -> None:
        self._ledger = Ledger(ledger)
        ports = iter(range(port_base, port_base + 6) if port_base else [0] * 6)
        self.pagerduty = PagerDuty(self._ledger, host, next(ports))
        self.jira = Jira(self._ledger, host, next(ports))
        self.servicenow = ServiceNow(self._ledger, host, next(ports))
        self.opsgenie = OpsGenie(self._ledger, host, next(ports))
        self.slack = Slack(self._ledger, host, next(ports))
        self.llm = Model(self._ledger, host, next(ports))

    def __iter__(self) -> Iterator[Standin]:
        yield from (self.pagerduty, self.jira, self.servicenow, self.opsgenie, self.slack, self.llm)

    def __enter__(self) -> "Standins":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        for standin in self:
            standin.up()

    def stop(self) -> None:
        for standin in self:
            standin.down()
        self._ledger.close()

    def settings(self, name: str) -> dict[str, str]:
        """The settings, by their API names, that the stand-in of this platform (or llm, or jsm) accepts."""
        return self.opsgenie.jsm_settings() if name == "jsm" else self[name].settings()

    def __getitem__(self, name: str) -> Standin:
        return next(standin for standin in self if standin.name == name)

    def clear_faults(self) -> None:
        for standin in self:
            standin.clear_faults()

    def settle(self) -> None:
        for standin in self:
            standin.settle()

    def reset(self) -> None:
        for standin in self:
            standin.reset()

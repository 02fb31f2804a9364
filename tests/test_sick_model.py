"""A real worker whose language model is sick in every way that it can be: pages leave as before, the other tickets wait
for it no longer than they may, the rules' answer stays, and it is asked no more often than it may be.
"""

import subprocess
import sys
import time

import pytest

from tests.rig import Rig
from tests.waiting import best, until
from ticketing.processes import ROOT

PAGING, OTHERS = ("pagerduty", "opsgenie"), ("jira", "servicenow", "slack")
INCIDENTS = 6  # more than the lane of causes has threads
ATTEMPTS = 3
WAIT_FOR_CAUSE = 5.0
CHECK = "from tests.hasty import app; app.send_task('causes.check_model', queue='causes')"
MISBEHAVIOURS = (
    {"kind": "hang"},
    {"kind": "drip", "seconds": 1},
    {"kind": "status", "code": 429, "headers": {"Retry-After": "1"}},
    {"kind": "status", "code": 500},
    {"kind": "huge", "megabytes": 5},
    {"kind": "malformed", "what": "json"},
    {"kind": "html"},
    {"kind": "empty"},
    {"kind": "reset", "when": "before"},
    {"kind": "reset", "when": "after"},
    {"kind": "reset", "when": "mid"},
)


@pytest.mark.fault("B20")
@pytest.mark.django_db  # so that it runs in each engine
def test_a_sick_model_delays_no_page_and_is_told(rig, faults):
    rig = rig(workers=1, llm=True)
    calm = rig.delivered("calm", INCIDENTS)
    chosen = faults.sample(MISBEHAVIOURS, 1)
    pages, others, known, most = [], [], [], 0
    for number, fault in enumerate(chosen):
        until(lambda: checked(rig) == "ok", 300, "a model that is well")
        rig.standin("llm", "POST", "/_faults", [fault | {"times": None, "method": how} for how in ("POST", "GET")])
        incidents: list[str] = []

        def delivered(number=number, incidents=incidents) -> float:
            """Seconds, without those that others may wait for a cause."""
            began = time.monotonic()
            incidents += rig.open(f"sick-{number}-{len(incidents)}", INCIDENTS)
            rig.shows(PAGING)
            pages.append(time.monotonic() - began)
            rig.shows(OTHERS)
            others.append(time.monotonic() - began - WAIT_FOR_CAUSE)
            return max(pages[-1], others[-1])

        took = best(delivered, max(2.0, 2 * calm), tries=3)
        known.append(degraded(rig, beat=faults.thorough and number == 0))
        most = max(most, asked(rig, fault, len(incidents)) / len(incidents))
        assert all(rig.api("GET", f"/api/incidents/{one}")[1]["fallback"] is True for one in incidents), fault
        rig.standin("llm", "DELETE", "/_faults")
        if took > max(2.0, 2 * calm):  # or has the machine become busy?
            calm = max(calm, rig.delivered(f"calm-{number}", INCIDENTS))
        assert took <= max(2.0, 2 * calm), fault
    faults.verdict(
        tried=len(chosen),
        pages_after=f"{max(pages):.2f} s",
        others_after=f"{WAIT_FOR_CAUSE + max(others):.2f} s (calm {calm:.2f})",
        degraded_after=f"{max(known):.1f} s",
        asked_at_most=f"{most:.1f} times for each",
    )


def status(rig: Rig) -> str:
    return rig.api("GET", "/api/v1/llm-status")[1]["status"]


def checked(rig: Rig) -> str:
    """What is told once a worker has looked."""
    subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, env=rig.environment, check=True)
    return status(rig)


def degraded(rig: Rig, *, beat: bool) -> float:
    """Seconds until it is told: after the clock's own check, or after one that is asked for now."""
    began = time.monotonic()
    if beat:
        rig.start("beat")
    until(lambda: (status if beat else checked)(rig) == "degraded", 70, "the model's state")
    took = time.monotonic() - began
    if beat:
        rig.kill("beat")
    assert took <= 60.0
    return took


def asked(rig: Rig, fault: dict, incidents: int) -> int:
    """How often the model was asked, once nobody asks it any more. All waiting for a next time is over."""

    def settled() -> bool:
        rig.change("UPDATE incidents_incident SET model_due_at = NOW WHERE model_due_at IS NOT NULL")
        time.sleep(0.2)
        return not rig.query("SELECT count(*) FROM incidents_incident WHERE model_due_at IS NOT NULL")[0][0]

    until(settled, 300, f"{fault}: no more questions")
    [used] = [one["used"] for one in rig.standin("llm", "GET", "/_faults") if one["method"] == "POST"]
    assert incidents <= used <= ATTEMPTS * incidents, fault
    return used

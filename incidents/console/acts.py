"""What a person does from the console: which incidents a form means, whether to ask first, what to tell after."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import transaction
from django.http import QueryDict
from django.utils import timezone

from auditlog.models import Entry
from config.current import current
from incidents import intake, lifecycle
from incidents.console import listing
from incidents.lifecycle import LONGEST_NOTE, MOVES, MOVES_AT_ONCE, Moved, Refused
from incidents.models import SEVERITY_RANK, Incident, Status, Ticket
from incidents.templatetags.console import age, clock, span, who
from platforms.catalog import PLATFORMS

INCIDENT_ID = re.compile(r"inc-\d{8}-\d{3,9}", re.ASCII)
STILL_BURNING = timedelta(minutes=5)
MOST_REFUSALS_TOLD = 3
UNDONE = ("acknowledge", "resolve")
TEST_WORDS = {"title": "A test anomaly", "description": "Sent from the console. Nothing is wrong: resolve it."}
AGAIN_AFTER = timedelta(seconds=10)
PATIENCE = f"Wait {AGAIN_AFTER.seconds} s between two tries."
SENT_AGAIN = ("sent again", "created anew", "pause ended")  # as the audit calls it


class Mistake(Exception):
    """The form cannot be carried out; nothing was changed. The message is for whoever sent it."""


@dataclass(frozen=True)
class Act:
    """One move on some incidents, as a form asks for it. `seen`: the status that was on the page, where it told one."""

    move: str
    ids: list[str]
    note: str = ""
    seen: str = ""
    confirmed: bool = False
    everything: bool = False  # all that match, as the server found them: more than anybody has seen

    @classmethod
    def read(cls, form: QueryDict) -> "Act":
        move = form.get("move", "")
        if move not in MOVES:
            raise Mistake("There is no such move.")
        everything = form.get("all") == "1"
        if everything:
            question = listing.Question.read(QueryDict(form.get("question", "").lstrip("?")))
            ids = listing.ids_matching(question, MOVES_AT_ONCE)
        else:
            said = ",".join(form.getlist("ids")).split(",")
            ids = [incident_id for incident_id in dict.fromkeys(said) if INCIDENT_ID.fullmatch(incident_id)]
        if not ids:
            raise Mistake("Nothing was selected, so nothing was changed.")
        if len(ids) > MOVES_AT_ONCE:
            raise Mistake(f"{MOVES_AT_ONCE:,} incidents at most can be changed at once. Nothing was changed.")
        confirmed = form.get("confirmed") == "1" and not everything
        return cls(move, ids, _note(form), form.get("seen", ""), confirmed, everything)


def _note(form: QueryDict) -> str:
    note = re.sub("[\x00\ud800-\udfff]", "\ufffd", form.get("note", "").replace("\r\n", "\n")).strip()
    if len(note) > LONGEST_NOTE:
        raise Mistake(f"A note may have {LONGEST_NOTE:,} characters; this one has {len(note):,}. Nothing was changed.")
    return note


# --- Asking first -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Confirmation:
    """What is asked before an act that cannot be taken back, or that looks like a slip."""

    act: Act
    question: str
    consequence: str
    incidents: list[Incident]
    severities: list[tuple[str, int]] = field(default_factory=list)

    @property
    def cautious(self) -> bool:
        """Whether Cancel is what Enter means: nobody can be un-woken."""
        return self.act.move == "escalate"


def confirmation(act: Act, now: datetime) -> Confirmation | None:
    """None where the act may simply be done."""
    alone = len(act.ids) == 1
    if act.confirmed or (act.move in ("acknowledge", "reopen") and not act.everything):
        return None
    rows = Incident.objects.filter(pk__in=act.ids).defer("root_cause", "evidence", "description")
    incidents = sorted(rows, key=lambda i: (SEVERITY_RANK[i.severity], i.id))
    if act.move == "resolve" and alone and not (incidents and _burns(incidents[0], now)):
        return None
    counts = Counter(incident.severity for incident in incidents)
    question, consequence = _asked(act, incidents, now)
    return Confirmation(act, question, consequence, incidents, [(s, counts[s]) for s in SEVERITY_RANK if counts[s]])


def _burns(incident: Incident, now: datetime) -> bool:
    return incident.status != Status.RESOLVED and now - incident.last_anomaly_at < STILL_BURNING


def _asked(act: Act, incidents: list[Incident], now: datetime) -> tuple[str, str]:
    many = f"{len(incidents):,} incidents" if len(incidents) != 1 else incidents[0].id
    if act.move == "escalate":
        targets = [PLATFORMS[name].label for name in current().escalation()]
        if not targets:
            return f"Escalate {many}?", "No platform that could be told is enabled: nobody will be told."
        pages = f"Page {_listed(targets)} for {many}?"
        return pages, "Whoever is on call there is woken. This cannot be taken back."
    if act.move == "resolve" and len(act.ids) == 1:
        ago = span((now - incidents[0].last_anomaly_at).total_seconds())
        return f"Resolve {many}?", f"It still burns: the last anomaly came {ago} ago. A new one reopens it."
    verb = act.move.capitalize()
    return f"{verb} {many}?", "Their tickets are brought to the same state."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


# --- Doing it ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What is said after an act. `undo`: the incidents that a reopen would bring back."""

    text: str
    good: bool
    undo: list[str]


def carry_out(act: Act, *, actor: str, request_id: str) -> Told:
    """Makes the move through the lifecycle. An incident that changed since it was looked at is left alone and told."""
    with transaction.atomic():
        if overtaken := _overtaken(act):
            return overtaken
        results = lifecycle.move(act.move, act.ids, actor=actor, note=act.note, request_id=request_id)
    past = MOVES[act.move].past
    changed = [result.incident for result in results if isinstance(result, Moved) and result.changed]
    same = [result.incident for result in results if isinstance(result, Moved) and not result.changed]
    refused = [result for result in results if isinstance(result, Refused)]
    said = [_done(past, changed)] if changed else []
    if same:
        said.append(_already(same))
    said += [_refused(refusal, past) for refusal in refused[:MOST_REFUSALS_TOLD]]
    if len(refused) > MOST_REFUSALS_TOLD:
        said.append(f"{len(refused) - MOST_REFUSALS_TOLD:,} more were refused.")
    if not changed:
        said.append("Nothing was changed.")
    undo = [incident.id for incident in changed] if act.move in UNDONE else []
    return Told(" ".join(said), bool(changed) and not refused, undo)


def _overtaken(act: Act) -> Told | None:
    """Whether somebody else moved the incident between the look and the click. Locks it until the move is made."""
    if len(act.ids) > 1 or not act.seen:
        return None
    incident = Incident.objects.select_for_update().filter(pk=act.ids[0]).first()
    if incident is None or incident.status in (act.seen, MOVES[act.move].leads_to):
        return None
    return Told(f"While you looked, {_stands(incident)}. Nothing was changed.", False, [])


def _refused(refusal: Refused, past: str) -> str:
    if refusal.incident is None:
        return refusal.message
    return f"{_stands(refusal.incident)}. It cannot be {past} before it is reopened."


def _stands(incident: Incident) -> str:
    """Who brought the incident into its state, and when, as the console names people and moments."""
    by, at = getattr(incident, f"{incident.status}_by", ""), getattr(incident, f"{incident.status}_at", None)
    words = f"{incident.id} was {incident.status}" + (f" by {who(by)}" if by else "")
    return words + (f" at {clock(at)} UTC, {age(at)} ago" if at else "")


def _done(past: str, changed: list[Incident]) -> str:
    if len(changed) > 1:
        return f"{len(changed):,} {past}."
    words = f"{changed[0].id} {past}."
    if past == "escalated" and not changed[0].escalated_to:
        words += " No platform that could be told is enabled: nobody was told."
    return words


def _already(same: list[Incident]) -> str:
    if len(same) > 1:
        return f"{len(same):,} were {same[0].status} already."
    incident = same[0]
    by = getattr(incident, f"{incident.status}_by", "")
    return f"{incident.id} was {incident.status} already" + (f" by {who(by)}." if by else ".")


def send_test_anomaly(*, actor: str, request_id: str) -> str | None:
    """The id of the low incident that a test anomaly opens. None where there are incidents: nothing needs a test."""
    if Incident.objects.exists():
        return None
    test = {"service": "test-service", "severity": "low", "score": current().minimum_score + 1}
    [result] = intake.accept([test | TEST_WORDS], actor=actor, request_id=request_id)
    return result.incident_id


def drill_targets() -> dict[str, list[str]]:
    """Who is told by a fire drill, and who of them is woken."""
    enabled = [PLATFORMS[name] for name in current().enabled()]
    return {
        "woken": [platform.label for platform in enabled if platform.pages],
        "told": [platform.label for platform in enabled if not platform.pages],
    }


def retry(incident_id: str, ticket_id: int, *, anew: bool, actor: str, request_id: str) -> tuple[str, bool] | None:
    """What came of sending one of the incident's tickets again, and whether it is sent. None where it has no such."""
    ticket = Ticket.objects.filter(pk=ticket_id, incident_id=incident_id).first()
    if ticket is None:
        return None
    label = PLATFORMS[ticket.platform].label
    if (ago := _sent_again(f"ticket:{incident_id}:{ticket.platform}")) is not None:
        return f"The {label} ticket was sent again {ago} s ago. {PATIENCE}", False
    lifecycle.retry_ticket(ticket_id, actor=actor, anew=anew, request_id=request_id)
    return f"The {label} ticket is {'created anew' if anew else 'sent again now'}.", True


def ask_model_again(incident_id: str) -> tuple[str, bool]:
    """What came of asking the model again, in words, and whether it is asked."""
    if not current().llm.configured:
        return "No model is configured, so the rules' answer stands.", False
    if lifecycle.ask_model_again(incident_id):
        return "The model is asked again. Its answer replaces the cause when it comes.", True
    return "The model is being asked, or was less than a minute ago. Wait for its answer.", False


def retry_platform(platform: str, *, actor: str, request_id: str) -> tuple[str, bool]:
    """What came of sending all of the platform's failed tickets again, and whether anything did."""
    label = PLATFORMS[platform].label
    failing = Ticket.objects.failing().filter(platform=platform).exists()
    if failing and (ago := _sent_again(f"platform:{platform}")) is not None:
        return f"{label}'s tickets were sent again {ago} s ago. {PATIENCE}", False
    done = lifecycle.retry_platform(platform, actor=actor, request_id=request_id)
    count = len(done.tickets)
    ended = f"{label} is asked again at once: its pause is over." if done.pause_ended else ""
    if not count:
        return ended or f"No {label} ticket has failed: nothing was sent again.", True
    sent = f"{count:,} {label} ticket{' is' if count == 1 else 's are'} sent again now."
    rest = "The rest must be sent again by another click." if count == lifecycle.RETRIED_AT_ONCE else ""
    return " ".join(filter(None, [sent, ended, rest])), True


def _sent_again(subject: str) -> int | None:
    """How many seconds ago somebody had this sent again, if it was a moment ago: the audit knows, whoever it was."""
    now = timezone.now()
    lately = Entry.objects.about(subject).filter(action__in=SENT_AGAIN, timestamp__gt=now - AGAIN_AFTER)
    last = lately.values_list("timestamp", flat=True).last()
    return last and max(0, int((now - last).total_seconds()))

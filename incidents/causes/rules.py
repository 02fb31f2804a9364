"""The root cause as rules can tell it: at once, from the evidence alone, the same for the same evidence.

The log's own words win over the producer's category, which is often guessed from a single word; where they differ, the
text says so. Nothing here claims more than "points to", and every statement names its evidence.

Pure. Texts from logs are hostile: they are quoted, short and in one line, and never interpreted.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from incidents.causes.faults import FAULTS, NAMED, UNKNOWN, Fault
from incidents.evidence import Evidence, LogLine

MAX_FINDING = 1_500


@dataclass(frozen=True, slots=True)
class Finding:
    """A root cause in a few lines of plain text, and the kind of fault it points to (a category of FAULTS)."""

    category: str
    text: str
    kind: str  # the same, but BARE where there was nothing to tell it from


# Which answers better evidence replaces, the weakest first. BARE: numbers alone, no words of the fault's own and
# nothing that says where it began.
BARE = "bare"
WEAK = (BARE, "unknown")

# Characters of a text that are searched for words: a log line says its piece early, and a batch may bring many.
_READ = 600
# Sentences that the detectors themselves write: their words are about signals, not about the fault.
_DETECTORS_OWN = re.compile(r"(?:anomaly detected: score|error rate spike: z|incident signal detected)", re.IGNORECASE)
# What has no width, turns the writing direction or breaks the line.
_NOT_SHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\U000e0000-\U000e007f]+"
)


def explain(
    *,
    service: str,
    severity: str,
    score: float,
    anomaly_count: int,
    trace_id: str,
    affected_services: Sequence[str],
    evidence: Evidence,
) -> Finding:
    """What failed, where it started, what it hit and what to look at first: 1,500 characters at most, never empty."""
    origin = _origin(service, evidence)
    verdict = _judge(origin, evidence)
    found = [
        _what(verdict, origin, evidence),
        _doubt(verdict),
        _where(origin, service, evidence),
        _hit(origin, affected_services, evidence),
        _quote_of(verdict, evidence),
        _measures(severity, score, anomaly_count, evidence),
    ]
    advice = f"Look first at: {verdict.fault.check}{_pointer(trace_id, evidence)}."
    # Long names may cost the end of what was found, but never the advice.
    told = _cut("\n".join(line for line in found if line), MAX_FINDING - len(advice) - 1)
    return Finding(verdict.fault.category, f"{told}\n{advice}", _kind(verdict, evidence))


def betters(kind: str, *, service: str, evidence: Evidence, thorough: bool = True) -> bool:
    """Whether more can be told from this evidence than an answer of this kind does. A known kind is never bettered.

    `thorough`: also where many words may have to be searched in vain; otherwise only where that happens once, because
    they are the first there are, or where the producer names a kind of fault.
    """
    if kind not in WEAK:
        return False
    first = kind == BARE and (evidence.log_lines or evidence.template or evidence.raw_error or evidence.causal_chain)
    if not (thorough or first or _claim(evidence)[0]):
        return False
    found = _kind(_judge(_origin(service, evidence), evidence), evidence)
    return found not in WEAK or WEAK.index(found) > WEAK.index(kind)


# Deciding what kind of fault it is.


@dataclass(frozen=True, slots=True)
class _Said:
    """A text of the evidence: where it stands, how much it counts, and the kind of fault its words give away."""

    place: str
    text: str
    weight: int
    fault: Fault | None
    line: LogLine | None = None


@dataclass(frozen=True, slots=True)
class _Verdict:
    fault: Fault
    said: tuple[_Said, ...]  # all texts there are
    claim: Fault | None  # what the producer's category says, where it says something
    claimed: str  # the same, in the producer's words
    signal: str  # the signal it was taken from, where there was nothing better

    @property
    def telling(self) -> list[_Said]:
        """The texts whose words give the verdict away."""
        return [said for said in self.said if said.fault is self.fault]


def _kind(verdict: "_Verdict", evidence: Evidence) -> str:
    bare = not (verdict.said or evidence.causal_chain or evidence.root_cause_service)
    return BARE if verdict.fault is UNKNOWN and bare else verdict.fault.category


def _judge(origin: str, evidence: Evidence) -> _Verdict:
    said = tuple(_texts(origin, evidence))
    claim, claimed = _claim(evidence)
    votes: dict[str, int] = {}
    for one in said:
        if one.fault:
            votes[one.fault.category] = votes.get(one.fault.category, 0) + one.weight
    if votes:
        # Of equals the one said first: max keeps the order in which they were met.
        winner = max(votes, key=votes.__getitem__)
        return _Verdict(next(fault for fault in FAULTS if fault.category == winner), said, claim, claimed, "")
    if claim:
        return _Verdict(claim, said, claim, claimed, "")
    hint, signal = _hint(evidence)
    return _Verdict(hint or UNKNOWN, said, None, claimed, signal)


def _texts(origin: str, evidence: Evidence) -> Iterable[_Said]:
    """Nearest to the fault first: what it said itself, its template, the log around it."""
    for place, text, weight in (
        ("the raw error message", evidence.raw_error, 3),
        ("the error template", evidence.template, 3),
        ("the message", evidence.message, 2),
    ):
        if text.strip() and not _DETECTORS_OWN.match(text):
            yield _Said(place, text, weight, _given_away_by(text))
    for line in evidence.log_lines:
        # Services further down the chain report what reached them; the one it started in reports what happened.
        weight = (2 if line.loud else 1) + (4 if line.service == origin and len(evidence.causal_chain) > 1 else 0)
        yield _Said("a log line", line.message, weight, _given_away_by(line.message), line)


@lru_cache(maxsize=2048)  # a fault says the same thing over and over
def _given_away_by(text: str) -> Fault | None:
    return next((fault for fault in FAULTS if fault.words and fault.words.search(text, 0, _READ)), None)


def _claim(evidence: Evidence) -> tuple[Fault | None, str]:
    for name in (evidence.category, evidence.anomaly_type):
        fault = NAMED.get(name.strip().lower())
        if fault:
            return fault, name
    return None, ""


def _hint(evidence: Evidence) -> tuple[Fault | None, str]:
    """The strongest signal that speaks of a kind of fault, such as `pattern:oom` or `http:service_unavailable`."""
    for name, _ in _strongest(evidence):
        fault = NAMED.get(name.rpartition(":")[2].lower())
        if fault:
            return fault, name
    return None, ""


def _strongest(evidence: Evidence) -> list[tuple[str, float]]:
    return sorted(evidence.signal_weights.items(), key=lambda signal: (-signal[1], signal[0]))


# Saying it.


def _what(verdict: _Verdict, origin: str, evidence: Evidence) -> str:
    if verdict.fault is UNKNOWN:
        kind = evidence.anomaly_type.replace("_", " ") or "anomaly"
        return f"The cause cannot be told from the evidence: {_name(kind)} in {_name(origin)}; {UNKNOWN.means}."
    return (
        f"Points to {verdict.fault.called} in {_name(origin)}: {verdict.fault.means}. "
        f"Confidence {_confidence(verdict)}: {_grounds(verdict)}."
    )


def _grounds(verdict: _Verdict) -> str:
    grounds = []
    lines = [said for said in verdict.said if said.line]
    telling_lines = sum(1 for said in verdict.telling if said.line)
    grounds += [said.place for said in verdict.telling if not said.line]
    if telling_lines:
        grounds.append(f"{telling_lines} of {len(lines)} log lines" if len(lines) > 1 else "the log line")
    if verdict.claim is verdict.fault:
        grounds.append(f"the category {_quote(verdict.claimed, 40)}")
    if verdict.signal:
        grounds.append(f"only the signal {_quote(verdict.signal, 60)}")
    return ", ".join(grounds)


def _confidence(verdict: _Verdict) -> str:
    """How many independent kinds of evidence agree, less what speaks against it.

    Template, message and raw message are one event in three spellings; a log line counts beside them if it is another.
    """
    own = {_shown(said.text).lower() for said in verdict.telling if not said.line}
    logged = {_shown(said.text).lower() for said in verdict.telling if said.line}
    agreeing = bool(own) + bool(logged - own) + (verdict.claim is verdict.fault)
    if _contradicted(verdict) or any(said.fault not in (None, verdict.fault) for said in verdict.said):
        agreeing -= 1
    return "high" if agreeing >= 3 else "fair" if agreeing == 2 else "low"


def _contradicted(verdict: _Verdict) -> bool:
    """Whether the producer's category stands against the words: none of its own words are in any text."""
    claim = verdict.claim
    if claim is None or claim is verdict.fault:
        return False
    return not any(claim.words and claim.words.search(said.text, 0, _READ) for said in verdict.said)


def _doubt(verdict: _Verdict) -> str:
    if verdict.claim is verdict.fault:
        if verdict.said and not verdict.telling:
            return "Nothing in the log's words confirms the category: read them before you act on it."
        return ""
    if verdict.claim is None:
        return ""
    claimed = f"The producer's category is {_quote(verdict.claimed, 40)}"
    place = "the log" if verdict.telling[0].line else verdict.telling[0].place
    if _contradicted(verdict):
        return f"{claimed}, but {place} says otherwise: its words are followed."
    return f"{claimed}; the words of {place} are more precise."


def _origin(service: str, evidence: Evidence) -> str:
    return evidence.root_cause_service or (evidence.causal_chain[0] if evidence.causal_chain else "") or service


def _where(origin: str, service: str, evidence: Evidence) -> str:
    chain = evidence.causal_chain
    span = f", span {_name(evidence.root_cause_span_id)}" if evidence.root_cause_span_id else ""
    if len(chain) > 1:
        return f"Started in: {_name(origin)} (causal chain {_path(chain)}{span})."
    if evidence.root_cause_service:
        return f"Started in: {_name(origin)} (named as the root cause's service{span})."
    endpoint = f", endpoint {_name(evidence.endpoint)}" if evidence.endpoint.strip() else ""
    return f"Seen in: {_name(service)}{endpoint} (no causal chain, so it may have begun elsewhere)."


def _hit(origin: str, affected_services: Sequence[str], evidence: Evidence) -> str:
    impact = evidence.impact
    downstream = impact.downstream if impact and impact.downstream else ()
    hit = downstream or tuple(one for one in affected_services if one != origin)
    details = []
    if impact:
        details += [f"blast radius {impact.score:.2f}"] if impact.score is not None else []
        details += [f"user impact {_name(impact.users)}"] if impact.users else []
    if len(evidence.request_flow) > 1:
        details.append(f"request flow {_path(evidence.request_flow)}")
    aside = f" ({', '.join(details)})" if details else ""
    if hit:
        return f"Hit: {_list(hit)}{aside}."
    return f"Hit: nothing else is reported{aside}." if aside else ""


def _quote_of(verdict: _Verdict, evidence: Evidence) -> str:
    """The line that tells most, and the names that such lines mention most often."""
    said = verdict.telling or [one for one in verdict.said if one.line and one.line.loud] or list(verdict.said)
    if not said:
        return "Evidence: no log line, template or error message came with the event."
    # A real log line says more than a template, whose numbers and names are masked.
    best = next((one for one in said if one.line), said[0])
    source = best.place
    if best.line:
        parts = [_name(part) for part in (best.line.level, best.line.service, best.line.at) if part.strip()]
        source = f"log line ({', '.join(parts)})" if parts else "log line"
    named = _mentioned(verdict)
    return f"Evidence: {source.removeprefix('the ')} {_quote(best.text, 200)}{named}."


def _mentioned(verdict: _Verdict) -> str:
    pattern = verdict.fault.names
    if pattern is None:
        return ""
    texts = [said.text for said in verdict.telling if said.line] or [said.text for said in verdict.telling]
    found = Counter(match[1] for match in map(pattern.search, texts) if match)
    if not found:
        return ""
    names = [f"{_name(name)} ({count}x)" if count > 1 else _name(name) for name, count in found.most_common(3)]
    return f"; named there: {', '.join(names)}"


def _measures(severity: str, score: float, anomaly_count: int, evidence: Evidence) -> str:
    measures = [f"anomaly score {score:.4g}, severity {severity}"]
    if anomaly_count > 1:
        measures.append(f"{anomaly_count} anomalies so far")
    if evidence.error_rate:
        rate = evidence.error_rate
        measures.append(f"error rate {rate:.0%}" if 0 < rate <= 1 else f"error rate {rate:.4g}")
    if evidence.z_score is not None:
        side = "above" if evidence.z_score >= 0 else "below"
        measures.append(
            f"z-score {evidence.z_score:.4g} ({abs(evidence.z_score):.1f} standard deviations {side} its usual)"
        )
    strongest = [f"{_name(name)} {weight:.3g}" for name, weight in _strongest(evidence)[:3]]
    if strongest:
        measures.append(f"strongest signals {', '.join(strongest)}")
    return f"Measured: {'; '.join(measures)}."


def _pointer(trace_id: str, evidence: Evidence) -> str:
    if trace_id.strip():
        return f"; trace {_name(trace_id)} shows the request"
    if evidence.span_ids:
        return f"; span {_name(evidence.span_ids[0])} shows the request"
    return ""


# Writing what others wrote.


def _name(text: str) -> str:
    return _cut(_shown(text), 80)


def _quote(text: str, limit: int) -> str:
    return '"' + _cut(_shown(text).replace('"', "'"), limit) + '"'


def _shown(text: str) -> str:
    """In one line, with nothing invisible in it."""
    return " ".join(_NOT_SHOWN.sub(" ", text).split())


def _path(services: Sequence[str]) -> str:
    shown = [_name(one) for one in services[:6]]
    return " -> ".join(shown + (["…"] if len(services) > 6 else []))


def _list(services: Sequence[str]) -> str:
    more = len(services) - 6
    return ", ".join(_name(one) for one in services[:6]) + (f" and {more} more" if more > 0 else "")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"

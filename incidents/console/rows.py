"""The list's rows as HTML. Written here and not in a template, which takes longer for fifty rows than all the rest of
the page; every value goes through `format_html`. What HTML lets one leave out (the cells' ends) is left out."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import Truncator

from incidents.console import charts
from incidents.console.listing import Question
from incidents.console.page import TicketLine
from incidents.models import Incident, Status
from incidents.templatetags.console import age, iso, number, sign, web_address, who, word

ROW = (
    '<tr data-id="{id}"><td class="c-select">{box}<td class="c-severity {severity}">{sign} {rank}'
    '<td class="c-status"><span class="chip {status}">{state}</span>{by}'
    '<th class="c-title" scope="row"><a href="{id}/">{title}</a>'
    '<td class="c-service"><a href="{narrowed}">{service}</a>{more}<td class="c-count">{spark}{count}'
    '<td class="c-age"><time datetime="{opened_at}">{opened}</time>'
    '<td class="c-seen"><time datetime="{seen_at}">{seen}</time>'
    '<td class="c-tickets">{tickets}<td class="c-cause{cause}'
)
BOX = '<input type="checkbox" name="ids" value="{0}" aria-label="Select {0}">'
MORE = ' <small title="{}">+{}</small>'
SPARK = '<svg aria-hidden="true"><path d="{}"/></svg>'
LINK = '<a href="{}" target="_blank" rel="noreferrer">{}</a> '
PLAIN = "<span>{}</span> "
BAD = '<a class="bad" href="{}/#tickets" title="{}">{}</a> '
WAITING = '<span class="quiet" title="{}">{}</span> '
NO_TICKET = '<span class="quiet">{}</span>'
# Up to so many tickets there is room for words beside the signs.
FEW = 2


@dataclass(frozen=True)
class Row:
    """An incident in the list."""

    incident: Incident
    lines: list[TicketLine]
    sparks: Sequence[int] = ()  # anomalies in the last hour


def html(rows: Sequence[Row], question: Question, *, may_act: bool) -> SafeString:
    return mark_safe("".join(_row(row, question, may_act) for row in rows))


def _row(row: Row, question: Question, may_act: bool) -> SafeString:
    one = row.incident
    by = getattr(one, f"{one.status}_by", "")
    others = [name for name in one.affected_services if name != one.service]
    spark = charts.spark(row.sparks) if one.status != Status.RESOLVED else ""
    return format_html(
        ROW,
        id=one.pk,
        box=format_html(BOX, one.pk) if may_act else "",
        severity=one.severity,
        sign=sign(one.severity),
        rank=word(one.severity),
        status=one.status,
        state=word(one.status),
        by=f" {who(by)}" if by else "",
        title=one.title,
        narrowed=question.query(service=one.service),
        service=one.service,
        more=format_html(MORE, ", ".join(one.affected_services), len(others)) if others else "",
        spark=format_html(SPARK, spark) if spark else "",
        count=number(one.anomaly_count),
        opened_at=iso(one.created_at),
        opened=age(one.created_at),
        seen_at=iso(one.last_anomaly_at),
        seen=age(one.last_anomaly_at),
        tickets=_tickets(row),
        cause=CAUSE[one.fallback],
    )


CAUSE = {True: mark_safe(' by-rules">Fallback'), False: mark_safe('">AI')}


def _tickets(row: Row) -> SafeString:
    """The troubled first, where the eye begins."""
    shown = [line for line in row.lines if line.state.name != "not needed"]
    if not shown:
        return format_html(NO_TICKET, "none needed" if row.incident.platforms else "nobody was told")
    shown.sort(key=lambda line: not (line.troubled or line.difference))
    return mark_safe("".join(_ticket(line, len(shown) <= FEW) for line in shown))


def _ticket(line: TicketLine, few: bool) -> SafeString:
    name, ticket = line.state.name, line.ticket
    if line.difference:
        seen = f": {Truncator(ticket.seen_status).chars(20)}" if few else ""
        return format_html(BAD, ticket.incident_id, line.difference, f"≠ {line.short}{seen}")
    if name == "in sync":
        url = web_address(ticket.remote_url)
        return format_html(LINK, url, line.short) if url else format_html(PLAIN, line.short)
    told = f"{line.label}: {line.state.words}"
    if line.troubled:
        shown, says = ("✕", " failed") if name == "failed" else ("↻", " retrying")
        return format_html(BAD, ticket.incident_id, told, f"{shown} {line.short}{says if few else ''}")
    return format_html(WAITING, told, f"{line.short}{' paused' if name == 'paused' else '…'}")

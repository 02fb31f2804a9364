"""The console's door to the configuration and the API keys. Secrets go in here and are never shown again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from django.contrib import messages
from django.contrib.admin import AdminSite, ModelAdmin
from django.core.exceptions import PermissionDenied
from django.db.models import Max
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone

from auditlog.models import Entry
from config import changes, durations, keys, probes
from config.changes import Invalid
from config.current import DEFAULTS, LLM_FIELDS, SEVERITIES, Current, read
from config.models import ApiKey, Role
from config.probes import Probe
from platforms.catalog import PLATFORMS
from platforms.contract import Field

PAGE = "admin:configuration"
KEYS = "admin:config_apikey_changelist"
LIFETIMES = {"": "never", "30": "in 30 days", "90": "in 90 days", "365": "in a year"}


@dataclass(frozen=True)
class Box:
    """One setting on the page. A secret has no value here, whatever was stored or typed."""

    field: Field
    name: str
    value: str
    is_set: bool
    error: str = ""

    @property
    def removable(self) -> bool:
        return self.field.secret and self.is_set and not self.field.required


@dataclass(frozen=True)
class Typed:
    """A form that was refused: shown again as it was typed, but for its secrets."""

    part: str
    form: QueryDict
    errors: dict[str, str]
    rehearsed: str = ""  # what would come of it, where that was asked instead
    asked: str = ""  # what it would do to people and open tickets, to be confirmed first


class Rehearsal(Protocol):
    """How many incidents the last days would have opened, by severity: as things are (`now`), and with other settings
    (`then`). Counted from `since`; `cut`: there was more than could be read."""

    now: Mapping[str, int]
    then: Mapping[str, int]
    since: datetime
    cut: bool


class ConfigurationPages:
    """One page with a form for each part. Each form changes its part alone, and wholly or not at all.

    `open_tickets` counts the tickets of active incidents by platform, `failed_tickets` those that failed;
    `active_incidents` counts by severity;
    `test_model` asks the language model; `rehearse` counts what two pairs of score and window make of the last days.
    They are handed in because they belong to those who import us.
    """

    def __init__(
        self,
        site: AdminSite,
        *,
        open_tickets: Callable[[], Mapping[str, int]],
        active_incidents: Callable[[], Mapping[str, int]],
        failed_tickets: Callable[[], dict[str, int]],
        test_model: Callable[[], Probe],
        rehearse: Callable[..., Rehearsal],
    ) -> None:
        self.site = site
        self.open_tickets = open_tickets
        self.active_incidents = active_incidents
        self.failed_tickets = failed_tickets
        self.test_model = test_model
        self.rehearse = rehearse

    def urls(self) -> list:
        wrap = self.site.admin_view
        return [
            path("config/", wrap(self.show), name="configuration"),
            path("config/platforms/<str:name>/", wrap(self.platform), name="configuration_platform"),
            path("config/platforms/<str:name>/test/", wrap(self.test_platform), name="configuration_platform_test"),
            path("config/routing/", wrap(self.routing), name="configuration_routing"),
            path("config/anomaly/", wrap(self.anomaly), name="configuration_anomaly"),
            path("config/llm/", wrap(self.llm), name="configuration_llm"),
            path("config/llm/test/", wrap(self.llm_test), name="configuration_llm_test"),
        ]

    def show(self, request: HttpRequest, typed: Typed | None = None) -> HttpResponse:
        config, failed, opened = read(), self.failed_tickets(), self.open_tickets()
        counts = {name: {"failed": failed.get(name, 0), "open": opened.get(name, 0)} for name in PLATFORMS}
        context = self.site.each_context(request) | {
            "title": "Configuration",
            "place": "configuration",
            "platforms": [self._platform(name, config, typed) | counts[name] for name in PLATFORMS],
            "routing": _routing(config, typed),
            "told_by_severity": [len(config.routed(severity)) for severity in SEVERITIES],
            "severities": SEVERITIES,
            "changed": _last_changes(),
            "anomaly": _anomaly(config, typed),
            "llm": {
                "boxes": _boxes(LLM_FIELDS, config.llm.settings, "llm", typed),
                "configured": config.llm.configured,
            },
            "told": _told(request),
            "typed": typed,
        }
        return TemplateResponse(request, "config/page.html", context, status=400 if typed and typed.errors else 200)

    def _platform(self, name: str, config: Current, typed: Typed | None) -> dict:
        platform, now = PLATFORMS[name], config.platforms[name]
        mine = typed if typed and typed.part == name else None
        return {
            "name": name,
            "label": platform.label,
            "warning": platform.warning(now.settings),
            "enabled": mine.form.get("enabled") == "1" if mine else now.enabled,
            "is_enabled": now.enabled,
            "boxes": _boxes(platform.fields, now.settings, name, typed, prefix=f"{name}."),
            "error": mine.errors.get(f"{name}.enabled", "") if mine else "",
            "identity": " or ".join(f.label for f in platform.fields if f.name in platform.identity),
            "routed": ", ".join(s for s in SEVERITIES if name in config.routing[s]),
        }

    # --- Changes ------------------------------------------------------------------------------------------------------

    def platform(self, request: HttpRequest, name: str) -> HttpResponse:
        if name not in PLATFORMS:
            raise Http404
        if request.method != "POST":
            return _back(name)
        enabled = request.POST.get("enabled") == "1"
        wanted = {"enabled": enabled} | _changed(PLATFORMS[name].fields, request.POST, read().platforms[name].settings)
        if not enabled and request.POST.get("confirmed") != "1" and read().platforms[name].enabled:
            _require_admin(request)
            if touched := self.open_tickets().get(name, 0):
                said = f"{_number_of(touched, 'ticket')} of active incidents at {PLATFORMS[name].label}"
                said += " would no longer be brought up to date."
                return self.show(request, Typed(name, request.POST, {}, asked=said))
        return self._change(request, name, lambda who: changes.patch_platforms({name: wanted}, **who))

    def routing(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            return _back("routing")
        now = read().routing
        wanted = {severity: _ticked(severity, now[severity], request.POST) for severity in SEVERITIES}
        if request.POST.get("rehearse") == "1":
            return self._rehearse_routing(request, wanted)
        if request.POST.get("confirmed") != "1" and (lost := _no_longer_told(wanted)):
            _require_admin(request)
            active = sum(self.active_incidents().get(severity, 0) for severity in lost)
            said = f"{' '.join(lost.values())} {_number_of(active, 'active incident')} of "
            said += f"{'this severity' if len(lost) == 1 else 'these severities'} would keep the tickets of now."
            return self.show(request, Typed("routing", request.POST, {}, asked=said))
        changed = {severity: names for severity, names in wanted.items() if names != now[severity]}
        return self._change(request, "routing", lambda who: changes.patch_routing(changed, **who))

    def anomaly(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            return _back("anomaly")
        wanted = {
            "minimumScore": _number(request.POST.get("minimumScore", "")),
            "lookbackWindow": request.POST.get("lookbackWindow", "").strip(),
        }
        if request.POST.get("rehearse") == "1":
            return self._rehearse_anomaly(request, wanted)
        return self._change(request, "anomaly", lambda who: changes.patch_anomaly(wanted, **who))

    def llm(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST":
            return _back("llm")
        wanted = _changed(LLM_FIELDS, request.POST, read().llm.settings)
        return self._change(request, "llm", lambda who: changes.patch_llm(wanted, **who))

    def _change(self, request: HttpRequest, part: str, change: Callable[[dict], object]) -> HttpResponse:
        _require_admin(request)
        try:
            change({"actor": request.principal.actor, "request_id": request.id})
        except Invalid as invalid:
            return self.show(request, Typed(part, request.POST, invalid.errors))
        messages.success(request, "Saved. It is in force everywhere within a second.", extra_tags=f"part:{part}")
        return _back(part)

    # --- Rehearsals ---------------------------------------------------------------------------------------------------

    def _rehearse_anomaly(self, request: HttpRequest, wanted: dict) -> HttpResponse:
        _require_admin(request)
        try:
            changes.check_anomaly(wanted)
        except Invalid as invalid:
            return self.show(request, Typed("anomaly", request.POST, invalid.errors))
        config = read()
        found = self.rehearse(
            before=(config.minimum_score, config.lookback),
            after=(wanted["minimumScore"], durations.parse(wanted["lookbackWindow"])),
        )
        words = f"With these settings {_period(found)} would have opened {_instead(found.then, found.now)}."
        return self.show(request, Typed("anomaly", request.POST, {}, words))

    def _rehearse_routing(self, request: HttpRequest, wanted: dict[str, list[str]]) -> HttpResponse:
        _require_admin(request)
        config = read()
        as_it_is = (config.minimum_score, config.lookback)
        found = self.rehearse(before=as_it_is, after=as_it_is)
        told = []
        for name, platform in PLATFORMS.items():
            before = sum(count for severity, count in found.now.items() if name in config.routing[severity])
            after = sum(count for severity, count in found.now.items() if name in wanted[severity])
            if config.platforms[name].enabled and (before or after):
                compared = f"instead of {before:,}" if after != before else "as now"
                told.append(f"{platform.label} {after:,} {compared}")
        total = sum(found.now.values())
        words = f"{_period(found).capitalize()} opened {_number_of(total, 'incident')}"
        words += f". With these routes the tickets would have been: {', '.join(told) or 'none'}."
        return self.show(request, Typed("routing", request.POST, {}, words))

    # --- Tests --------------------------------------------------------------------------------------------------------

    def test_platform(self, request: HttpRequest, name: str) -> HttpResponse:
        if name not in PLATFORMS:
            raise Http404
        return self._test(request, name, lambda: probes.test_platform(name))

    def llm_test(self, request: HttpRequest) -> HttpResponse:
        return self._test(request, "llm", self.test_model)

    def _test(self, request: HttpRequest, part: str, probe: Callable[[], Probe]) -> HttpResponse:
        if request.method == "POST":
            _require_admin(request)
            result = probe()
            took = f" ({result.milliseconds} ms)" if result.milliseconds else ""
            level = messages.SUCCESS if result.ok else messages.ERROR
            messages.add_message(request, level, f"{result.message}{took}", extra_tags=f"part:{part}")
        return _back(part)


def _period(found: Rehearsal) -> str:
    if found.cut:
        return f"the anomalies since {found.since:%Y-%m-%d %H:%M} UTC (there are too many to count further back)"
    return "the last 7 days"


def _instead(then: Mapping[str, int], now: Mapping[str, int]) -> str:
    after, before = sum(then.values()), sum(now.values())
    words = _number_of(after, "incident")
    if after == before and dict(then) == dict(now):
        return f"{words}, as with those that are in force"
    changed = [severity for severity in SEVERITIES if then.get(severity, 0) != now.get(severity, 0)]
    by_severity = [f"{then.get(s, 0):,} {s} instead of {now.get(s, 0):,}" for s in changed]
    return f"{words} instead of {before:,}: {', '.join(by_severity)}"


def _number_of(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _no_longer_told(wanted: Mapping[str, list[str]]) -> dict[str, str]:
    """By severity, in words, who would not hear any more of its new incidents."""
    config, lost = read(), {}
    for severity in SEVERITIES:
        before = config.routed(severity)
        gone = [PLATFORMS[name].label for name in before if name not in wanted[severity]]
        if len(gone) == len(before) and not set(wanted[severity]) & set(config.enabled()):
            words = f"Nobody would be told of new {severity} incidents."
        else:
            words = f"New {severity} incidents would no longer go to {' and '.join(gone)}."
        if gone:
            lost[severity] = words
    return lost


def _last_changes() -> dict[str, dict]:
    """By part of the page: its latest change, who made it and when."""
    parts = {f"config:platform:{name}": name for name in PLATFORMS}
    parts |= {f"config:{name}": name for name in ("routing", "anomaly", "llm")}
    newest = Entry.objects.filter(subject__in=parts).order_by().values("subject").annotate(newest=Max("id"))
    found = Entry.objects.filter(pk__in=newest.values("newest"))
    return {
        parts[entry.subject]: {
            "subject": entry.subject,
            "who": entry.actor.removeprefix("user:"),
            "at": entry.timestamp,
            "what": entry.details,
        }
        for entry in found
    }


def _require_admin(request: HttpRequest) -> None:
    if not request.principal.may("admin"):
        raise PermissionDenied


def _back(part: str) -> HttpResponseRedirect:
    return HttpResponseRedirect(f"{reverse(PAGE)}#{part}")


def _told(request: HttpRequest) -> list[dict[str, str]]:
    """What is to be said, and in which part of the page."""
    return [
        {"part": message.extra_tags.removeprefix("part:"), "level": message.level_tag, "text": message.message}
        for message in messages.get_messages(request)
    ]


def _boxes(
    fields: tuple[Field, ...], stored: dict[str, str], part: str, typed: Typed | None, *, prefix: str = ""
) -> list[Box]:
    mine = typed if typed and typed.part == part else None
    boxes = []
    for f in fields:
        kept = stored.get(f.name, "")
        value = "" if f.secret else (mine.form.get(f.name, kept) if mine else kept)
        error = mine.errors.get(prefix + f.name, "") if mine else ""
        boxes.append(Box(f, f.name, value, bool(kept), error))
    return boxes


def _changed(fields: tuple[Field, ...], form: QueryDict, stored: dict[str, str]) -> dict[str, str]:
    """What the form changes. An empty secret means "leave it", unless its removal was ticked."""
    wanted = {}
    for f in fields:
        value = form.get(f.name, "")
        if f.secret:
            if value:
                wanted[f.name] = value
            elif form.get(f"remove-{f.name}") == "1":
                wanted[f.name] = ""
        elif f.name in form and value.strip() != stored.get(f.name, ""):
            wanted[f.name] = value
    return wanted


def _ticked(severity: str, before: list[str], form: QueryDict) -> list[str]:
    """The ticked platforms: those there were in their order, new ones behind them."""
    ticked = [name for name in PLATFORMS if name in form.getlist(f"routing-{severity}")]
    return [name for name in before if name in ticked] + [name for name in ticked if name not in before]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text  # which is refused, in the words of `changes`


def _routing(config: Current, typed: Typed | None) -> list[dict]:
    mine = typed if typed and typed.part == "routing" else None
    rows = []
    for name, platform in PLATFORMS.items():
        ticked = [
            (severity, name in (mine.form.getlist(f"routing-{severity}") if mine else config.routing[severity]))
            for severity in SEVERITIES
        ]
        enabled = config.platforms[name].enabled
        rows.append({"name": name, "label": platform.label, "enabled": enabled, "ticked": ticked})
    return rows


def _anomaly(config: Current, typed: Typed | None) -> dict:
    mine = typed if typed and typed.part == "anomaly" else None
    shown = {"minimumScore": f"{config.minimum_score:g}", "lookbackWindow": config.lookback_window}
    return {
        "values": {name: mine.form.get(name, kept) if mine else kept for name, kept in shown.items()},
        "errors": mine.errors if mine else {},
        "defaults": DEFAULTS["anomaly"],
    }


# --- API keys ---------------------------------------------------------------------------------------------------------


class ApiKeyPages(ModelAdmin):
    """Keys are made, listed and revoked. A new key's text is in one answer and nowhere else."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.principal.may("admin")

    def has_view_permission(self, request: HttpRequest, obj=None) -> bool:
        return request.principal.may("admin")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj=None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj=None) -> bool:
        return False

    def get_urls(self) -> list:
        wrap = self.admin_site.admin_view
        return [
            path("", wrap(self.list_page), name="config_apikey_changelist"),
            path("<int:key_id>/revoke/", wrap(self.revoke), name="config_apikey_revoke"),
        ]

    def list_page(self, request: HttpRequest) -> HttpResponse:
        _require_admin(request)
        if request.method == "POST":
            return self.create(request)
        return self._page(request)

    def create(self, request: HttpRequest) -> HttpResponse:
        """Answers with the key itself. No redirect: it would have to be kept somewhere until the next page."""
        form = request.POST
        try:
            key, text = keys.create(
                name=form.get("name", ""),
                role=form.get("role", ""),
                actor=request.principal.actor,
                expires_at=_expiry(form.get("expires", ""), timezone.now()),
            )
        except Invalid as invalid:
            return self._page(request, status=400, errors=invalid.errors, form=form)
        return self._page(request, created=key, text=text)

    def _page(self, request: HttpRequest, *, status: int = 200, **more: object) -> HttpResponse:
        now = timezone.now()
        context = self.admin_site.each_context(request) | {
            "title": "API keys",
            "place": "keys",
            "keys": [(key, _state(key, now)) for key in ApiKey.objects.order_by("revoked_at", "name")],
            "roles": Role.choices,
            "lifetimes": LIFETIMES.items(),
        }
        return TemplateResponse(request, "config/keys.html", context | more, status=status)

    def revoke(self, request: HttpRequest, key_id: int) -> HttpResponse:
        _require_admin(request)
        key = ApiKey.objects.filter(pk=key_id).first() if key_id < 2**63 else None
        if key is None:
            raise Http404
        if request.method == "POST":
            keys.revoke(key, actor=request.principal.actor)
            messages.success(request, f"{key.name} is revoked: whoever used it is refused from now on.")
            return HttpResponseRedirect(reverse(KEYS))
        context = self.admin_site.each_context(request) | {"title": f"Revoke {key.name}?", "place": "keys", "key": key}
        return TemplateResponse(request, "config/revoke.html", context)


def _expiry(days: str, now: datetime) -> datetime | None:
    if days not in LIFETIMES:
        raise Invalid({"expires": "Choose one of the lifetimes."})
    return now + timedelta(days=int(days)) if days else None


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= now else "in use" if key.last_used_at else "not used yet"

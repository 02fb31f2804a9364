"""The audit in the console: entries to look through, never to change."""

from collections.abc import Mapping
from datetime import UTC
from urllib.parse import urlencode

from django.contrib.admin import ModelAdmin, ShowFacets, display
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from auditlog.models import Entry

MOST_COUNTED = 10_000


class CappedPaginator(Paginator):
    """Counts 10,000 entries at most: nobody leafs further, and counting millions would hold the page up."""

    @cached_property
    def count(self) -> int:
        return self.object_list.order_by()[:MOST_COUNTED].count()


class EntryPages(ModelAdmin):
    """`pages`: by the kind of subject, the URL name of the page that shows one, given its name."""

    pages: Mapping[str, str] = {}

    list_display = ("moment", "about", "action", "actor", "details")
    list_display_links = ("moment",)
    search_fields = ("^subject", "^actor", "^request_id")
    search_help_text = "Begin of a subject (incident:inc-…, config:routing), an actor (user:anna), or a request id."
    ordering = ("-id",)
    sortable_by = ()
    list_per_page = 100
    list_max_show_all = 0
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    paginator = CappedPaginator
    actions = None
    fields = ("moment", "subject", "action", "actor", "details", "data", "request_id")

    @display(description="time")
    def moment(self, entry: Entry) -> str:
        return entry.timestamp.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    @display(description="subject")
    def about(self, entry: Entry) -> SafeString:
        """Leads to the subject's own page, or else to all entries about it."""
        kind, _, name = entry.subject.partition(":")
        page = self.pages.get(kind)
        address = reverse(page, args=[name]) if page else f"?{urlencode({'q': entry.subject})}"
        return format_html('<a href="{}">{}</a>', address, entry.subject)

    def changelist_view(self, request: HttpRequest, extra_context: dict | None = None) -> HttpResponse:
        return super().changelist_view(request, {"title": "Audit"} | (extra_context or {}))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.principal.may("viewer")

    def has_view_permission(self, request: HttpRequest, obj=None) -> bool:
        return request.principal.may("viewer")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj=None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj=None) -> bool:
        return False

"""`python -m tests.bench.data begin PASSWORD`: tables, the floor's too, and who may call; prints an API key.
`python -m tests.bench.data incidents N`: a database that has seen something.

Incidents and tickets are copies of the newest incident that has its tickets, by one statement each, so that a hundred
thousand are there in seconds: a day's worth of 1,440, ending now, one in ten still open, as many acknowledged.
Prints the ids of some that are open.
`python -m tests.bench.data overview N`: how many milliseconds the console's overview takes, each time anew (a server
keeps it for half a minute), in this process, as JSON: N times after one that warms up.
"""

import json
import os
import sys
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ticketing.settings")
django.setup()

from django.conf import settings  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.core.cache import cache  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.models import F, Model  # noqa: E402
from django.test import Client  # noqa: E402

from config import keys  # noqa: E402
from incidents.models import Incident, Ticket  # noqa: E402
from tests.bench.floor_views import Row  # noqa: E402

FIRST = 100_000
EVERY = 10  # one in so many is open
MOST_TOLD = 1000


def begin(password: str) -> None:
    call_command("migrate", verbosity=0)
    with connection.schema_editor() as editor:
        editor.create_model(Row)
    User.objects.create_superuser("bench", password=password)
    _, text = keys.create(name="bench", role="admin", actor="system")
    print(text)


def incidents(count: int) -> None:
    pattern = Incident.objects.filter(tickets__shown_version=F("tickets__wanted_version")).newest_first().first()
    if connection.vendor == "postgresql":
        at = "now() - n.i * interval '1 minute'"
    else:
        at = "strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || n.i || ' minutes') || '000'"
    status = f"CASE n.i % {EVERY} WHEN 0 THEN 'open' WHEN 1 THEN 'acknowledged' ELSE 'resolved' END"
    times = ("created_at", "updated_at", "first_anomaly_at", "last_anomaly_at", "cause_at")
    differing = dict.fromkeys(times, at) | {
        "id": f"'inc-20200101-' || ({FIRST} + n.i)",
        "number": f"{FIRST} + n.i",
        "token": f"'copy' || ({FIRST} + n.i)",
        "title": "'Fault ' || n.i || ' of many: high error rate'",
        "service": "'service-' || (n.i % 200)",
        "severity": "CASE n.i % 4 WHEN 0 THEN 'critical' WHEN 1 THEN 'high' WHEN 2 THEN 'medium' ELSE 'low' END",
        "status": status,
        "acknowledged_at": f"CASE n.i % {EVERY} WHEN 0 THEN NULL ELSE {at} END",
        "resolved_at": f"CASE WHEN n.i % {EVERY} > 1 THEN {at} END",
    }
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
    copy(Incident, differing, f"FROM incidents_incident AS t, ({numbers} SELECT i FROM n) AS n", pattern.pk)
    of_incident = {"incident_id": "i.id", "created_at": "i.created_at", "remote_id": "t.platform || i.number"}
    pairs = "FROM incidents_ticket AS t, incidents_incident AS i"
    copy(Ticket, of_incident, pairs, pattern.pk, "t.incident_id = %s AND i.token LIKE 'copy%%'")
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")  # as autovacuum would
    opened = Incident.objects.filter(token__startswith="copy", status="open").newest_first()
    print(json.dumps(list(opened.values_list("pk", flat=True)[:MOST_TOLD])))


def overview(times: int) -> None:
    settings.ALLOWED_HOSTS = ["testserver"]
    browser = Client()
    browser.force_login(User.objects.get(username="bench"), backend="ticketing.access.RolesAtOnce")
    took = []
    for _ in range(times + 1):
        cache.clear()
        began = time.perf_counter()
        assert browser.get("/admin/", secure=True).status_code == 200
        took.append(1000 * (time.perf_counter() - began))
    print(json.dumps(took[1:]))


def copy(model: type[Model], differing: dict[str, str], source: str, pk: str, where: str = "t.id = %s") -> None:
    fields = [f for f in model._meta.concrete_fields if not f.generated]
    columns = [f.column for f in fields if f.column != "id" or "id" in differing]
    values = ", ".join(differing.get(column, f"t.{column}").replace("%", "%%") for column in columns)
    insert = f"INSERT INTO {model._meta.db_table} ({', '.join(columns)}) SELECT {values} {source} WHERE {where}"
    with connection.cursor() as cursor:
        cursor.execute(insert, [pk])


if __name__ == "__main__":
    what, value = sys.argv[1:]
    begin(value) if what == "begin" else {"incidents": incidents, "overview": overview}[what](int(value))

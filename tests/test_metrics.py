"""`/metrics`: true whichever process answers, cheap for requests and for the database, readable for Prometheus."""

import re
from datetime import timedelta

import pytest
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from incidents import counters
from incidents.delivery.lanes import beat
from incidents.models import Counter, Incident, Pulse, Ticket
from ticketing import metrics

TOLD = "text/plain; version=0.0.4; charset=utf-8"


@pytest.fixture(autouse=True)
def nothing_counted_yet():
    counters._pending.clear()
    yield
    counters._pending.clear()


@pytest.fixture
def figures(api):
    """What a scrape says, by sample."""

    def scrape() -> dict[str, float]:
        response = api.get("/metrics")
        assert (response.status_code, response["Content-Type"]) == (200, TOLD)
        lines = response.content.decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    return scrape


def backdate(**changes) -> None:
    Ticket.objects.update(**changes)


class TestWhoMayRead:
    def test_a_viewer(self, client_of):
        assert client_of("viewer").get("/metrics").status_code == 200

    def test_no_producer_and_nobody_else(self, client_of, client):
        assert client_of("producer").get("/metrics").status_code == 403
        assert client.get("/metrics", headers={"Host": "tickets.example.com"}).status_code in (400, 401)
        assert client.get("/metrics", headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 401


class TestTheFormat:
    def test_every_metric_is_introduced_and_named_alike(self, figures, api):
        text = api.get("/metrics").content.decode()
        kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        assert kinds == {metric.name: metric.kind for metric in metrics.METRICS}
        assert re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE) == list(kinds)
        sample = re.compile(r'[a-z_]+(\{[a-z_]+="[^"\\\n]*"(,[a-z_]+="[^"\\\n]*")*\})?')
        for name in figures():
            assert sample.fullmatch(name), name
        assert text.endswith("\n")
        for name, kind in kinds.items():
            assert name.endswith("_total") == (kind == "counter")

    def test_what_can_happen_is_told_before_it_does(self, figures):
        seen = figures()
        assert seen['ticketing_intake_events_total{outcome="created"}'] == 0
        assert seen['ticketing_tickets_behind{platform="jira"}'] == 0
        assert seen['ticketing_incidents_active{severity="low",status="open"}'] == 0
        assert seen['ticketing_time_to_show_seconds_bucket{platform="slack",le="+Inf"}'] == 0
        assert not [name for name, value in seen.items() if value and name.startswith("ticketing_tickets")]


class TestLevels:
    def test_tickets_behind_since_when_due_and_given_up(self, figures, connect, api, send, work):
        connect("pagerduty", "slack")
        send({"service": "a"}, {"service": "b"})
        seen = figures()
        assert seen['ticketing_tickets_behind{platform="slack"}'] == 2
        assert seen['ticketing_tickets_due{platform="slack"}'] == 2
        assert seen['ticketing_tickets_behind{platform="jira"}'] == 0
        backdate(due_at=timezone.now() - timedelta(minutes=11))
        assert 660 <= figures()['ticketing_tickets_behind_oldest_seconds{platform="slack"}'] < 700
        work()
        seen = figures()
        assert seen['ticketing_tickets_behind{platform="slack"}'] == 0
        assert seen['ticketing_tickets_behind_oldest_seconds{platform="slack"}'] == 0
        # An old ticket that falls behind now is behind since now, not since it was made.
        backdate(created_at=timezone.now() - timedelta(days=7))
        api.post(f"/api/incidents/{Incident.objects.first().pk}/resolve", {}, format="json")
        assert figures()['ticketing_tickets_behind_oldest_seconds{platform="slack"}'] < 60

    def test_a_ticket_that_fails_is_behind_since_it_first_failed(self, figures, connect, send, work):
        connect("slack").slack.fault("status", times=9, code=500)
        send()
        work()
        backdate(failing_since=timezone.now() - timedelta(hours=1), due_at=timezone.now() + timedelta(minutes=5))
        seen = figures()
        assert 3600 <= seen['ticketing_tickets_behind_oldest_seconds{platform="slack"}'] < 3660
        assert seen['ticketing_tickets_due{platform="slack"}'] == 0
        assert seen['ticketing_platform_failures{platform="slack"}'] == 1

    def test_parked_tickets_are_told_apart(self, figures, connect, send, work):
        connect("pagerduty").pagerduty.fault("status", times=1, code=400, body="Invalid routing key")
        send()
        work()
        seen = figures()
        assert seen['ticketing_tickets_parked{platform="pagerduty"}'] == 1
        assert seen['ticketing_tickets_behind{platform="pagerduty"}'] == 0

    def test_a_paused_platform(self, figures, connect, send, work):
        connect("slack").slack.fault("status", times=1, code=429, headers={"Retry-After": "300"})
        send()
        work()
        seen = figures()
        assert seen['ticketing_platform_paused{platform="slack"}'] == 1
        assert seen['ticketing_platform_breaker_open{platform="slack"}'] == 0
        assert seen['ticketing_platform_enabled{platform="slack"}'] == 1
        assert seen['ticketing_platform_enabled{platform="jira"}'] == 0

    def test_incidents_by_severity_and_status(self, figures, api, send):
        ids = send({"service": "a"}, {"service": "b"}, {"service": "c", "severity": "low"})["incidents"]
        api.post(f"/api/incidents/{ids[0]}/acknowledge", {}, format="json")
        api.post(f"/api/incidents/{ids[2]}/resolve", {}, format="json")
        seen = figures()
        assert {name: n for name, n in seen.items() if name.startswith("ticketing_incidents_active") and n} == {
            'ticketing_incidents_active{severity="critical",status="acknowledged"}': 1,
            'ticketing_incidents_active{severity="critical",status="open"}': 1,
        }

    def test_root_causes_by_source(self, figures, connect, send, work):
        send({"service": "a"})
        connect("llm")
        send({"service": "b"})
        seen = figures()
        assert seen['ticketing_root_causes_last_hour{source="rules"}'] == 1
        assert seen['ticketing_root_causes_last_hour{source="awaiting"}'] == 1
        assert (seen["ticketing_causes_due"], seen["ticketing_model_configured"]) == (1, 1)
        work()
        seen = figures()
        assert seen['ticketing_root_causes_last_hour{source="model"}'] == 1
        assert seen["ticketing_causes_due"] == 0

    def test_the_machinery(self, figures):
        seen = figures()
        assert (seen["ticketing_ready"], seen["ticketing_worker_sweeps"]) == (0, 0)
        assert seen["ticketing_beat_age_seconds"] == float("inf")
        for name in ("beat", "sweep:one:1", "sweep:two:2"):
            beat(name)
        seen = figures()
        assert (seen["ticketing_ready"], seen["ticketing_worker_sweeps"], seen["ticketing_worker_hears"]) == (1, 2, 0)
        assert seen["ticketing_beat_age_seconds"] < 60
        beat("hears:two:2")
        assert figures()["ticketing_worker_hears"] == 1
        Pulse.objects.filter(name="hears:two:2").update(at=timezone.now() - timedelta(seconds=31))
        assert figures()["ticketing_worker_hears"] == 0


class TestCounts:
    def test_events_attempts_and_the_time_to_a_page(self, figures, connect, api, send, work):
        standins = connect("pagerduty")
        standins.pagerduty.fault("status", times=1, code=500)
        send({"service": "a", "eventId": "1"}, {"service": "a"}, {"service": "a", "score": 0.1}, {"service": 3})
        send({"service": "a", "eventId": "1"})
        api.post("/api/v1/anomalies?dryRun=true", {"service": "z", "severity": "low", "score": 3}, format="json")
        work(later=True)
        counters.write()
        seen = figures()
        assert {outcome: seen[counters.INTAKE.sample(outcome=outcome)] for outcome in counters.OUTCOMES} == {
            "created": 1, "deduplicated": 1, "belowThreshold": 1, "rejected": 1, "redelivered": 1, "reopened": 0,
        }
        assert seen['ticketing_attempts_total{platform="pagerduty",outcome="retry"}'] == 1
        assert seen['ticketing_attempts_total{platform="pagerduty",outcome="in_step"}'] == 1
        assert seen['ticketing_time_to_show_seconds_count{platform="pagerduty"}'] == 1
        assert seen['ticketing_time_to_show_seconds_bucket{platform="pagerduty",le="+Inf"}'] == 1
        assert 0 < seen['ticketing_time_to_show_seconds_sum{platform="pagerduty"}'] < 60
        assert seen['ticketing_http_requests_total{status="200"}'] >= 3

    def test_a_later_change_is_no_second_page(self, figures, connect, api, send, work):
        connect("pagerduty")
        [incident_id] = send()["incidents"]
        work()
        api.post(f"/api/incidents/{incident_id}/resolve", {}, format="json")
        work()
        counters.write()
        assert figures()['ticketing_time_to_show_seconds_count{platform="pagerduty"}'] == 1

    def test_several_processes_add_up(self, db):
        for number in (1, 2):
            counters.count(counters.INTAKE, number, outcome="created")
            counters.write()
        assert Counter.objects.get(name='ticketing_intake_events_total{outcome="created"}').value == 3

    def test_a_bucket_holds_what_its_bound_says(self, db):
        for seconds in (0.5, 0.6, 4000):
            counters.observe(counters.TIME_TO_SHOW, seconds, platform="jira")
        counters.write()
        rows = dict(Counter.objects.values_list("name", "value"))
        name = 'ticketing_time_to_show_seconds_bucket{{platform="jira",le="{}"}}'
        counts = [rows.get(name.format(bound), 0) for bound in counters.TIME_TO_SHOW.buckets]
        assert counts == [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3]

    def test_what_cannot_be_written_waits(self, db, monkeypatch):
        counters.count(counters.INTAKE, outcome="created")

        def down(*args):
            raise DatabaseError("down")

        with monkeypatch.context() as patched:
            patched.setattr(connection, "cursor", down)
            with pytest.raises(DatabaseError):
                counters.write()
        counters.count(counters.INTAKE, outcome="created")
        counters.write()
        assert Counter.objects.get(name=counters.INTAKE.sample(outcome="created")).value == 2

    def test_rows_of_another_version_are_left_out(self, figures):
        Counter.objects.create(name="ticketing_gone_total", value=3)
        assert "ticketing_gone_total" not in figures()


class TestCost:
    def test_a_scrape_is_a_fixed_number_of_queries_however_much_there_is(self, settled, connect, send, work):
        connect()
        metrics.exposition()

        def queries() -> int:
            with CaptureQueriesContext(connection) as captured:
                metrics.exposition()
            # The configuration is read twice a second, whatever is asked.
            return len([query for query in captured if '"config_' not in query["sql"]])

        before = queries()
        send(*({"service": f"s{number}"} for number in range(30)))
        work()
        counters.write()
        assert queries() <= before <= 14

    def test_its_queries_use_indexes(self, settled, connect, send):
        """Where the tables are large: incidents, tickets and anomalies."""
        connect()
        send(*({"service": f"s{number}"} for number in range(30)))
        metrics.exposition()
        with CaptureQueriesContext(connection) as captured:
            metrics.exposition()
        large = ("incidents_incident", "incidents_ticket", "incidents_anomaly", "incidents_seenevent")
        explained = 0
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("SET LOCAL enable_seqscan = off")
            for query in captured.captured_queries:
                if any(f'FROM "{table}"' in query["sql"] for table in large):
                    plan = "EXPLAIN " if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN "
                    cursor.execute(plan + query["sql"])
                    text = "\n".join(str(row) for row in cursor.fetchall())
                    assert re.search(r"(USING (COVERING )?INDEX|Index (Only )?Scan|Bitmap Index Scan)", text), text
                    assert not re.search(r"Seq Scan|SCAN \S+'", text), text
                    explained += 1
        assert explained == 6

    def test_counting_asks_nothing_of_the_database(self):
        """A test without a database may not ask it anything."""
        counters.count(counters.HTTP_REQUESTS, status=200)
        counters.observe(counters.TIME_TO_SHOW, 1.0, platform="jira")
        assert counters._pending


def test_a_process_that_serves_writes_by_itself_and_once_more_at_its_end(transactional_db, monkeypatch):
    monkeypatch.setattr(counters, "WRITE_SECONDS", 600.0)
    monkeypatch.setattr(counters, "STOP_SECONDS", 60.0)
    counters.count(counters.INTAKE, outcome="created")
    counters.start()
    counters.stop()
    assert Counter.objects.get(name=counters.INTAKE.sample(outcome="created")).value == 1

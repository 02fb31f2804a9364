"""Console logins end: after a stated time whatever is done, and a stated time after the last click."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import Group, User
from django.contrib.sessions.models import Session
from django.db import DatabaseError
from django.test import Client
from django.utils import timezone

from incidents import retention
from ticketing import sessions

LIST = "/admin/incidents/incident/"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.fixture
def pass_(time_machine):
    """Time passes, and nothing else happens meanwhile."""

    class Clock:
        now = timezone.now()

    time_machine.move_to(Clock.now, tick=False)

    def move(span: timedelta) -> None:
        Clock.now += span
        time_machine.move_to(Clock.now, tick=False)

    return move


@pytest.fixture
def anna(db, client, settings, pass_):
    settings.SESSION_HOURS, settings.SESSION_IDLE_MINUTES = 12, 60
    user = User.objects.create_user("anna", password="a-long-password")
    user.groups.add(Group.objects.get_or_create(name="viewer")[0])
    client.force_login(user, backend="ticketing.access.RolesAtOnce")
    return client


def is_in(client, **headers) -> bool:
    status = client.get(LIST, headers=headers).status_code
    assert status in (200, 302)
    return status == 200


def test_a_login_ends_when_nothing_is_done_for_so_long(anna, pass_):
    pass_(59 * MINUTE)
    assert is_in(anna)
    pass_(59 * MINUTE)
    assert is_in(anna)
    pass_(60 * MINUTE)
    assert not is_in(anna)


def test_and_after_its_hours_whatever_is_done(anna, pass_):
    for _ in range(23):
        pass_(30 * MINUTE)
        assert is_in(anna)
    pass_(30 * MINUTE)
    assert not is_in(anna)


def test_a_page_that_only_asks_for_news_does_not_count(anna, pass_):
    for _ in range(5):
        pass_(10 * MINUTE)
        assert is_in(anna, X_Fragment="rows")
    pass_(10 * MINUTE)
    assert not is_in(anna, X_Fragment="rows")


def test_the_api_ends_with_the_console(anna, pass_):
    assert anna.get("/api/incidents").status_code == 200
    pass_(61 * MINUTE)
    assert anna.get("/api/incidents").status_code == 401


def test_a_new_login_begins_anew(anna, pass_):
    pass_(11 * HOUR + 59 * MINUTE)
    anna.force_login(User.objects.get(), backend="ticketing.access.RolesAtOnce")
    pass_(50 * MINUTE)
    assert is_in(anna)


def test_what_an_ended_login_asked_for_does_not_end_the_next_one(anna, pass_):
    """Its answer may come when the browser has the next one's cookie already."""
    earlier = Client()
    earlier.cookies["session_18081"] = anna.cookies["session_18081"].value
    pass_(60 * MINUTE)
    anna.force_login(User.objects.get(), backend="ticketing.access.RolesAtOnce")
    for address in (LIST, "/admin/session/", "/api/incidents"):
        answer = earlier.get(address, headers={"X-Fragment": "rows"})
        assert answer.status_code in (302, 401)
        assert "session_18081" not in answer.cookies
    assert is_in(anna)
    assert anna.post("/admin/logout/").cookies["session_18081"].value == ""


def test_signing_in_again_before_the_end_begins_anew(anna, pass_):
    for _ in range(23):
        pass_(30 * MINUTE)
        assert is_in(anna)
    pass_(27 * MINUTE)
    again = f"/admin/login/?again=1&next={LIST}"
    assert 'name="password"' in anna.get(again).content.decode()
    answer = anna.post(again, {"username": "anna", "password": "a-long-password", "next": LIST})
    assert (answer.status_code, answer.headers["Location"]) == (302, LIST)
    pass_(50 * MINUTE)
    assert is_in(anna)


def test_an_open_page_is_told_how_long_the_login_lasts_and_asking_alone_prolongs_nothing(anna, pass_):
    def told(**headers) -> tuple[int, int]:
        answer = anna.get("/admin/session/", headers=headers).json()
        return answer["left"], answer["longest"]

    page = anna.get(LIST).content.decode()
    assert 'id="session" data-ask=' in page
    assert 'data-left="3600" data-warning="300"' in page
    pass_(57 * MINUTE)
    assert told(X_Fragment="session") == (180, 12 * 3600 - 57 * 60)
    assert told(X_Fragment="session") == (180, 12 * 3600 - 57 * 60)
    told()
    assert told(X_Fragment="session") == (3600, 12 * 3600 - 57 * 60)
    pass_(60 * MINUTE)
    assert anna.get("/admin/session/", headers={"X-Fragment": "session"}).status_code == 302


@pytest.mark.parametrize(("minutes", "seconds"), [(1, 20), (5, 100), (15, 300), (600, 300)])
def test_the_end_is_told_a_while_before(settings, minutes, seconds):
    settings.SESSION_IDLE_MINUTES = minutes
    assert sessions.warning_seconds() == seconds


def test_clicks_are_noted_now_and_then(anna, pass_, django_assert_max_num_queries):
    def writes() -> int:
        with django_assert_max_num_queries(100) as told:
            assert is_in(anna)
        return sum(one["sql"].startswith("UPDATE") for one in told.captured_queries)

    assert writes() == 0
    pass_(3 * MINUTE)
    assert writes() == 1
    assert writes() == 0


def test_a_click_that_cannot_be_noted_is_answered(anna, pass_, monkeypatch):
    def refuse(*args, **how):
        raise DatabaseError("cannot execute UPDATE in a read-only transaction")

    pass_(5 * MINUTE)
    monkeypatch.setattr("ticketing.sessions.SessionStore.save", refuse)
    assert is_in(anna)


def test_a_session_of_unknown_age_is_over(anna):
    session = anna.session
    del session["seen"]
    session.save()
    assert not is_in(anna)


def test_the_cookie_ends_with_the_login(anna, client):
    answer = client.post("/admin/login/", {"username": "anna", "password": "a-long-password"})
    assert answer.cookies["session_18081"]["max-age"] == 12 * 3600


def test_what_is_over_goes(anna, pass_):
    pass_(12 * HOUR + MINUTE)
    retention.prune()
    assert not Session.objects.exists()

"""What delivery decides, rule by rule; then all rules together against a model of the world, out of a seed."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from incidents.delivery import core
from incidents.delivery.core import Create, Find, Level, Update
from platforms.contract import PlatformError, Remote
from tests import simulation

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
KEYED = core.Traits(pages=True, keyed=True, searchable=False)
PAGERDUTY = replace(KEYED, reopens_resolved_only=True)
JIRA = core.Traits(pages=False, keyed=False, searchable=True, search_lag=timedelta(seconds=30))
SERVICENOW = core.Traits(pages=False, keyed=False, searchable=True)
SLACK = core.Traits(pages=False, keyed=False, searchable=False)

OPEN = Level("open")
ACKNOWLEDGED = Level("acknowledged", moved="1")
ESCALATED = Level("escalated", escalated=True, moved="2")
TAKEN = Level("acknowledged", escalated=True, moved="3")  # acknowledged after it was escalated
RESOLVED = Level("resolved", moved="4")
REOPENED = Level("open", moved="5", opened="5")
REMOTE = Remote("R-1", "https://example.com/R-1")

# SIMULATION_STEPS=10000000 for a night; SIMULATION_SEED to look at what it found.
STEPS = int(os.environ.get("SIMULATION_STEPS", 200_000))
SEED = int(os.environ.get("SIMULATION_SEED", 1))


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def row(traits: core.Traits, wanted: Level = OPEN, **more) -> core.Row:
    return core.Row(**{"wanted": wanted, "traits": traits, "written_at": NOW} | more)


def request(before: core.Row, now: datetime = NOW) -> core.Request | None:
    return core.next_request(before, now)[1]


def outcome(before: core.Row, now: datetime = NOW) -> core.Row:
    after, asked = core.next_request(before, now)
    assert asked is None
    return after


def answered(before: core.Row, answer, now: datetime = NOW, *, serves_others: bool = True) -> core.Row:
    before, asked = core.next_request(before, now)
    assert asked is not None
    return core.after(before, asked, answer, now, serves_others=serves_others)


def lost(message: str = "no answer") -> PlatformError:
    return PlatformError(message, in_doubt=True)


class TestSteps:
    @pytest.mark.parametrize(
        ("shown", "wanted", "todo"),
        [
            (OPEN, OPEN, ()),
            (OPEN, ACKNOWLEDGED, ("acknowledge",)),
            (OPEN, ESCALATED, ("escalate",)),
            (OPEN, TAKEN, ("escalate", "acknowledge")),
            (OPEN, RESOLVED, ("resolve",)),
            (ACKNOWLEDGED, ESCALATED, ("escalate",)),
            (ACKNOWLEDGED, TAKEN, ("escalate", "acknowledge")),
            (ACKNOWLEDGED, REOPENED, ("reopen",)),
            (ESCALATED, TAKEN, ("acknowledge",)),
            (TAKEN, ESCALATED, ("escalate",)),
            (ESCALATED, ACKNOWLEDGED, ("reopen", "acknowledge")),
            (ESCALATED, REOPENED, ("reopen",)),
            (RESOLVED, REOPENED, ("reopen",)),
            (RESOLVED, ACKNOWLEDGED, ("reopen", "acknowledge")),
            (RESOLVED, ESCALATED, ("reopen", "escalate")),
            (RESOLVED, TAKEN, ("reopen", "escalate", "acknowledge")),
            (TAKEN, RESOLVED, ("resolve",)),
            (RESOLVED, replace(RESOLVED, moved="9", opened="8"), ()),
            (OPEN, REOPENED, ()),  # resolved and reopened in between: nobody was told of either
            (OPEN, replace(OPEN, cause="c", note=7), ("cause", "note")),
            (OPEN, replace(ACKNOWLEDGED, cause="c", note=7), ("acknowledge", "cause", "note")),
            (OPEN, replace(RESOLVED, cause="c", note=7), ("resolve", "note")),
        ],
    )
    def test_lead_from_what_is_shown_to_what_is_wanted(self, shown, wanted, todo):
        assert core.steps(shown, wanted) == todo

    @pytest.mark.parametrize(
        ("shown", "wanted", "todo"),
        [
            (OPEN, OPEN, ()),  # it has not moved, so nothing else can be shown
            (OPEN, REOPENED, ("reopen",)),  # the resolve in between may have arrived
            (RESOLVED, replace(RESOLVED, moved="9", opened="8"), ("resolve",)),  # and so may this reopen
            (TAKEN, replace(TAKEN, moved="9"), ("acknowledge",)),
            (ESCALATED, replace(ESCALATED, moved="9"), ("escalate",)),
            (OPEN, replace(ACKNOWLEDGED, opened="0"), ("reopen", "acknowledge")),
        ],
    )
    def test_in_doubt_count_on_no_move_since(self, shown, wanted, todo):
        assert core.steps(shown, wanted, in_doubt=True) == todo


class TestCreating:
    def test_a_key_makes_looking_needless(self):
        assert request(row(KEYED)) == Create()

    def test_without_a_key_we_look_first(self):
        looked = answered(row(JIRA), None)
        assert looked.lookups == 1
        assert request(looked) == Create()

    def test_what_is_found_is_taken_over(self):
        found = answered(row(JIRA, ACKNOWLEDGED), REMOTE)
        assert found.remote == REMOTE
        assert request(found) == Update(("acknowledge",))

    def test_what_is_found_for_an_incident_that_never_moved_is_in_step(self):
        done = outcome(answered(row(JIRA), REMOTE))
        assert (done.settled, done.in_doubt, done.shown) == (False, False, OPEN)

    def test_not_for_a_fault_of_yesterday(self):
        late = NOW + core.TOO_OLD_TO_CREATE + seconds(1)
        for traits in (KEYED, JIRA, SERVICENOW, SLACK):
            parked = outcome(row(traits), late)
            assert parked.parked
            assert "within a day" in parked.last_error
            assert request(row(traits, remote=REMOTE, shown=OPEN, wanted=RESOLVED), late) == Update(("resolve",))

    def test_resolved_before_told_tells_nobody_but_is_on_record(self):
        for traits in (KEYED, SLACK):
            quiet = outcome(row(traits, RESOLVED))
            assert (quiet.settled, quiet.remote, quiet.shown) == (False, None, RESOLVED)
        assert request(row(JIRA, RESOLVED, lookups=1)) == Create()

    def test_resolved_while_it_is_in_doubt_whether_told_calls_off(self):
        for traits in (KEYED, SLACK):
            doubtful = answered(row(traits), lost())
            assert request(replace(doubtful, wanted=RESOLVED, wait_seconds=None)) == Update(("resolve",))


class TestDoubt:
    def again(self, before: core.Row) -> core.Row:
        return replace(before, wait_seconds=None, parked=False, attempts=before.attempts + 1)

    def test_a_key_lets_us_send_again(self):
        doubtful = answered(row(KEYED), lost())
        assert (doubtful.in_doubt, doubtful.wait_seconds) == (True, core.PAGING_RETRY[0])
        assert request(self.again(doubtful)) == Create()

    @pytest.mark.parametrize(("traits", "looks"), [(JIRA, [2, 5, 30]), (SERVICENOW, [2, 5])])
    def test_we_look_until_the_search_must_have_seen_it(self, traits, looks):
        now = NOW
        waiting = answered(row(traits, lookups=1), lost())
        made = []
        while waiting.settled:
            now += seconds(waiting.wait_seconds)
            waiting, asked = core.next_request(self.again(waiting), now)
            while isinstance(asked, Find):
                made.append((now - NOW).total_seconds())
                waiting, asked = core.next_request(core.after(waiting, asked, None, now, serves_others=True), now)
        assert made == looks
        assert asked == Create()

    def test_looking_comes_to_an_end_however_late_it_begins(self):
        doubtful = row(JIRA, in_doubt=True, doubtful_since=NOW)
        late = NOW + seconds(300)
        first = core.next_request(answered(doubtful, None, late), late)[0]
        assert 0 < first.wait_seconds <= 5
        soon = late + seconds(first.wait_seconds)
        assert request(answered(self.again(first), None, soon), soon) == Create()

    def test_a_second_creation_in_doubt_is_looked_for_anew(self):
        looked = row(JIRA, in_doubt=True, doubtful_since=NOW, lookups=3, last_lookup_at=NOW + seconds(30))
        later = NOW + seconds(31)
        assert request(looked, later) == Create()
        again = answered(looked, lost(), later)
        assert (again.doubtful_since, again.lookups) == (later, 0)
        dead = core.claimed(looked, predecessor_died=True, now=later)
        assert (dead.doubtful_since, dead.lookups) == (later, 0)

    def test_a_search_that_took_long_tells_how_it_was_when_asked(self):
        before, asked = core.next_request(
            row(JIRA, in_doubt=True, doubtful_since=NOW, lookups=1, last_lookup_at=NOW), NOW + seconds(25)
        )
        after = core.after(before, asked, None, NOW + seconds(40), serves_others=True)
        assert after.last_lookup_at == NOW + seconds(25)
        assert request(after, NOW + seconds(40)) == Find(NOW + seconds(40))

    def test_who_died_may_have_done_anything(self):
        dead = core.claimed(row(JIRA, lookups=1), predecessor_died=True, now=NOW)
        assert (dead.in_doubt, dead.lookups, request(dead)) == (True, 0, Find(NOW))
        assert not core.claimed(row(JIRA), predecessor_died=False, now=NOW).in_doubt

    def test_a_message_is_repeated_once_and_marked(self):
        first = answered(row(SLACK), lost())
        assert not first.may_be_doubled
        second = answered(self.again(first), lost())
        assert second.may_be_doubled
        third = outcome(self.again(second))
        assert third.parked
        assert request(self.again(third)) == Create(), "for whoever sends it again"

    def test_a_message_that_never_left_may_still_be_repeated(self):
        second = answered(self.again(answered(row(SLACK), lost())), PlatformError("cannot connect"))
        assert request(self.again(second)) == Create()

    def test_a_move_that_may_have_been_made_is_undone_by_the_next(self):
        doubtful = answered(row(KEYED, RESOLVED, remote=REMOTE, shown=OPEN), lost())
        assert request(self.again(replace(doubtful, wanted=REOPENED))) == Update(("reopen",))
        certain = answered(row(KEYED, RESOLVED, remote=REMOTE, shown=OPEN), PlatformError("cannot connect"))
        assert request(self.again(replace(certain, wanted=replace(REOPENED, status="resolved")))) == Update(
            ("resolve",)
        )

    def test_an_alert_that_may_have_been_there_is_moved_again(self):
        doubtful = self.again(answered(row(KEYED, ACKNOWLEDGED), lost()))
        raised = answered(replace(doubtful, wanted=ESCALATED), REMOTE)
        assert request(raised) == Update(("escalate",))

    def test_certainty_ends_it(self):
        done = answered(row(KEYED, ACKNOWLEDGED, remote=REMOTE, shown=OPEN, in_doubt=True, doubtful_since=NOW), REMOTE)
        assert (done.in_doubt, outcome(done).shown) == (False, ACKNOWLEDGED)


class TestAnAlertThatOnlyResolvedCanBeOpenedAnew:
    def test_is_resolved_alone_and_then_opened(self):
        for shown in (ACKNOWLEDGED, ESCALATED, TAKEN, RESOLVED):
            ended = answered(row(PAGERDUTY, REOPENED, remote=REMOTE, shown=shown, attempts=3), REMOTE)
            assert (ended.wait_seconds, ended.parked, ended.attempts) == (0, False, 2)
            assert (ended.shown.status, ended.shown.opened) == ("resolved", REOPENED.opened)
            follows = replace(ended, wait_seconds=None)
            assert request(follows) == Update(("reopen",))
            assert outcome(answered(follows, REMOTE)).shown == REOPENED

    def test_is_resolved_again_where_it_is_unknown_whether_it_was(self):
        ends = row(PAGERDUTY, REOPENED, remote=REMOTE, shown=ACKNOWLEDGED)
        assert request(ends) == Update(("resolve",))
        assert request(replace(answered(ends, lost()), wait_seconds=None)) == Update(("resolve",))
        assert request(core.claimed(ends, predecessor_died=True, now=NOW)) == Update(("resolve",))

    def test_is_opened_again_and_not_resolved_where_it_is_unknown_whether_it_was_opened(self):
        ended = answered(row(PAGERDUTY, REOPENED, remote=REMOTE, shown=ACKNOWLEDGED), REMOTE)
        opens = replace(ended, wait_seconds=None)
        assert request(replace(answered(opens, lost()), wait_seconds=None)) == Update(("reopen",))
        assert request(core.claimed(opens, predecessor_died=True, now=NOW)) == Update(("reopen",))

    def test_stays_where_nothing_is_to_be_opened(self):
        for shown, wanted, todo in (
            (ACKNOWLEDGED, ESCALATED, ("escalate",)),
            (OPEN, ESCALATED, ("escalate",)),
            (ESCALATED, TAKEN, ("acknowledge",)),
            (ESCALATED, replace(ACKNOWLEDGED, opened="5"), ("reopen", "acknowledge")),  # somebody is at it already
            (OPEN, RESOLVED, ("resolve",)),
        ):
            assert request(row(PAGERDUTY, wanted, remote=REMOTE, shown=shown)) == Update(todo)
        assert request(row(PAGERDUTY, OPEN)) == Create()

    def test_pages_for_a_reopening_that_was_escalated_before_it_was_shown(self):
        wanted = replace(ESCALATED, opened="5")
        assert request(row(PAGERDUTY, wanted, remote=REMOTE, shown=ACKNOWLEDGED)) == Update(("resolve",))

    def test_elsewhere_is_just_reopened(self):
        assert request(row(KEYED, REOPENED, remote=REMOTE, shown=ACKNOWLEDGED)) == Update(("reopen",))


class TestFailing:
    def test_waits_grow_and_a_page_waits_least(self):
        waits = [answered(row(KEYED, attempts=n), PlatformError("no")).wait_seconds for n in range(1, 9)]
        assert waits == [1, 2, 4, 8, 15, 30, 30, 30]
        waits = [answered(row(SLACK, attempts=n), PlatformError("no")).wait_seconds for n in range(1, 9)]
        assert waits == [2, 5, 15, 30, 60, 120, 300, 300]

    def test_the_platforms_own_wish_counts(self):
        assert answered(row(KEYED), PlatformError("503", retry_after=40.0)).wait_seconds == 40

    def test_a_permanent_error_parks(self):
        parked = answered(row(KEYED), PlatformError("Invalid routing key", permanent=True))
        assert (parked.parked, parked.last_error) == (True, "Invalid routing key")

    def test_a_throttled_platform_rests_and_the_ticket_loses_no_attempt(self):
        for told, rest in ((12.0, 12.0), (0.0, 0.5), (None, core.PAUSE_WITHOUT_HINT)):
            paused = answered(row(SLACK, attempts=4), PlatformError("429", pause=True, retry_after=told))
            assert (paused.pause_platform, paused.attempts, paused.wait_seconds) == (rest, 3, 0)

    def test_where_people_are_paged_it_rests_for_a_minute_at_most(self):
        hour = PlatformError("429", pause=True, retry_after=3600.0)
        assert answered(row(KEYED), hour).pause_platform == core.LONGEST_PAUSE_PAGING == 60
        assert answered(row(SLACK), hour).pause_platform == 3600
        assert answered(row(KEYED), PlatformError("503", retry_after=3600.0)).wait_seconds == 60

    def test_a_poison_ticket_parks_where_the_platform_serves_others(self):
        poison = row(KEYED, attempts=core.POISON_ATTEMPTS)
        assert answered(poison, PlatformError("500"), serves_others=True).parked
        assert not answered(poison, PlatformError("500"), serves_others=False).parked

    def test_a_ticket_that_kills_its_workers_parks(self):
        killer = core.claimed(row(KEYED, attempts=core.POISON_ATTEMPTS + 1), predecessor_died=True, now=NOW)
        assert killer.parked
        assert request(killer) is None

    def test_an_update_that_failed_for_a_day_parks(self):
        began = NOW - core.GIVE_UP_UPDATING - seconds(1)
        old = row(KEYED, RESOLVED, remote=REMOTE, shown=OPEN, failing_since=began, written_at=began)
        assert answered(old, PlatformError("500"), serves_others=False).parked
        again = answered(replace(old, written_at=NOW), PlatformError("500"), serves_others=False)
        assert (again.parked, again.failing_since) == (False, began), "somebody has asked for it anew"

    def test_a_closed_record_is_followed_by_another_in_an_attempt_of_its_own(self):
        closed = row(SERVICENOW, REOPENED, remote=REMOTE, shown=RESOLVED)
        follows = answered(closed, PlatformError("closed", recreate=True))
        assert (follows.generation, follows.remote, follows.shown) == (2, None, None)
        assert follows.previous_links == ("https://example.com/R-1",)
        assert (follows.wait_seconds, follows.parked, follows.in_doubt) == (0, False, False)
        assert request(replace(follows, wait_seconds=None)) == Find(NOW)

    def test_a_cause_that_comes_after_the_end_is_kept_for_a_reopening(self):
        late = replace(RESOLVED, cause="c")
        done = outcome(row(JIRA, late, remote=REMOTE, shown=RESOLVED))
        assert core.steps(done.shown, replace(REOPENED, cause="c")) == ("reopen", "cause")


@pytest.mark.parametrize("platform", simulation.PLATFORMS, ids=lambda platform: platform.__name__)
class TestSimulation:
    def test_every_promise_is_kept(self, platform):
        assert simulation.run(platform, SEED, STEPS // len(simulation.PLATFORMS)) >= STEPS // len(simulation.PLATFORMS)

    def test_one_page_for_each_opening(self, platform):
        """Whatever happens on the way there, once there is time for it to be shown."""
        if not platform.pages:
            return
        for seed in range(SEED, SEED + 100):
            world = simulation.World(platform, seed, stormy=True, fenced=True, leased=True)
            for opening in range(1, 6):
                for status in ("open", "acknowledged", "resolved"):
                    if (opening, status) != (1, "open"):
                        world.change(status)
                    world.wander(20, changing=False)
                    world.come_to_rest()
                assert world.platform.woken == list(range(1, opening + 1)), f"seed {seed}"

    def test_one_page_for_each_opening_from_acknowledged(self, platform):
        if not platform.reopens_resolved_only:
            return
        for seed in range(SEED, SEED + 100):
            world = simulation.World(platform, seed, stormy=True, fenced=True, leased=True)
            for opening in range(1, 6):
                for status in ("open", "acknowledged"):
                    if (opening, status) != (1, "open"):
                        world.change(status)
                    world.wander(20, changing=False)
                    world.come_to_rest()
                assert world.platform.woken == list(range(1, opening + 1)), f"seed {seed}"


PAGERS, RECORDS = [simulation.Pager, simulation.Alias], [simulation.Tracker, simulation.Closing]


class TestTheSimulatorNotices:
    """A check that cannot fail proves nothing: each safeguard is taken away, and something must break."""

    @pytest.mark.parametrize("platform", PAGERS)
    def test_a_missing_fence(self, platform):
        with pytest.raises(simulation.Broken):
            simulation.run(platform, SEED, 300_000, fenced=False)

    @pytest.mark.parametrize("platform", [*RECORDS, simulation.Channel])
    def test_a_missing_lease(self, platform):
        with pytest.raises(simulation.Broken):
            simulation.run(platform, SEED, 300_000, leased=False)

    @pytest.mark.parametrize("platform", RECORDS)
    def test_a_look_up_that_sees_nothing(self, platform, monkeypatch):
        def blind(self, call, key):
            yield

        monkeypatch.setattr(platform, "find", blind)
        with pytest.raises(simulation.Broken, match="two records"):
            simulation.run(platform, SEED, 300_000)

    def test_a_single_look_up_before_the_search_can_have_seen_it(self, monkeypatch):
        monkeypatch.setattr(core, "_next_look", lambda row: None)
        with pytest.raises(simulation.Broken, match="two records"):
            simulation.run(simulation.Tracker, SEED, 300_000)

    @pytest.mark.parametrize("platform", PAGERS)
    def test_moves_in_doubt_taken_for_made(self, platform, monkeypatch):
        real = core.steps
        monkeypatch.setattr(core, "steps", lambda shown, wanted, *, in_doubt: real(shown, wanted))
        with pytest.raises(simulation.Broken):
            simulation.run(platform, SEED, 300_000)

    def test_an_acknowledged_alert_taken_for_one_that_can_be_opened(self, monkeypatch):
        monkeypatch.setattr(core, "_ends_first", lambda row, todo: False)
        with pytest.raises(simulation.Broken, match="acknowledged for open"):
            simulation.run(simulation.Pager, SEED, 300_000)

    def test_an_alert_that_is_ended_without_a_note_of_it(self, monkeypatch):
        monkeypatch.setattr(core, "_ended_first", lambda row: replace(row, wait_seconds=0.0))
        with pytest.raises(simulation.Broken):
            simulation.run(simulation.Pager, SEED, 300_000)

    def test_repetitions_that_are_not_counted(self, monkeypatch):
        monkeypatch.setattr(core, "_repeatable", lambda row, request: (row, request))
        with pytest.raises(simulation.Broken, match="without saying so"):
            simulation.run(simulation.Channel, SEED, 300_000)

    def test_creations_of_yesterday(self, monkeypatch):
        monkeypatch.setattr(core, "TOO_OLD_TO_CREATE", timedelta(days=7))
        with pytest.raises(simulation.Broken, match="a day late"):
            simulation.run(simulation.Pager, SEED, 300_000)

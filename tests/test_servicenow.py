"""ServiceNow: the contract, and what the Table API does to it."""

from dataclasses import replace

import pytest

from platforms.contract import PlatformError, Remote
from tests.standins.servicenow import TRANSACTION_CANCELLED
from tests.test_platform_contract import NOTICE, PlatformContract


class TestServiceNow(PlatformContract):
    name = "servicenow"
    refused = "Invalid user name or password"
    reopened = "acknowledged"  # In Progress: ServiceNow has no way back to New
    connected = "Connection successful. Whether the account may write incidents shows with the first one."
    wrong = {"password": "wrong"}

    def records(self):
        return [row for row in self.standin.records.values() if row["correlation_id"] == NOTICE.key]

    def tickets(self):
        return len(self.records())

    def status(self):
        return {"1": "open", "2": "acknowledged", "6": "resolved"}[self.records()[0]["state"]]

    def raised(self):
        return self.records()[0]["priority"] == "1"

    def said(self):
        row = self.records()[0]
        notes = [entry["text"] for entry in self.standin.journal[row["sys_id"]]]
        return "\n".join([row["short_description"], row["description"], *notes])

    @pytest.mark.parametrize(("step", "status"), [("reopen", "open")])
    def test_reopening_puts_the_record_in_progress(self, step, status):
        remote = self.create(replace(NOTICE, status="resolved"))
        self.update(remote, step, status=status)
        assert self.records()[0]["state"] == "2"

    def test_the_priorities_are_computed_from_impact_and_urgency(self):
        for severity, priority in (("critical", "1"), ("high", "2"), ("medium", "3"), ("low", "4")):
            self.create(replace(NOTICE, severity=severity, key=f"key-{severity}"))
            row = next(row for row in self.standin.records.values() if row["correlation_id"] == f"key-{severity}")
            assert row["priority"] == priority

    def test_no_field_is_sent_that_the_table_does_not_have(self):
        self.create(replace(NOTICE, status="resolved"))
        assert self.standin.ignored == []

    def test_the_ticket_links_to_the_record(self):
        remote = self.create()
        sys_id = self.records()[0]["sys_id"]
        assert remote.id == "INC0010001"
        assert remote.url == f"{self.standin.url}/nav_to.do?uri=incident.do%3Fsys_id%3D{sys_id}"

    def test_a_record_is_found_again_by_its_key_when_its_id_was_lost(self):
        self.create()
        self.update(Remote(), "acknowledge", status="acknowledged")
        assert self.status() == "acknowledged"

    @pytest.mark.parametrize("steps", [("reopen",), ("acknowledge",), ("cause",)])
    def test_a_closed_record_asks_for_a_new_one(self, steps):
        remote = self.create()
        self.standin.close(self.records()[0]["sys_id"])
        with pytest.raises(PlatformError) as caught:
            self.update(remote, *steps, status="acknowledged")
        assert caught.value.recreate

    def test_a_closed_record_is_as_good_as_resolved(self):
        remote = self.create()
        self.standin.close(self.records()[0]["sys_id"])
        self.update(remote, "resolve", "cause", status="resolved")
        assert self.records()[0]["state"] == "7"

    def test_the_next_generation_links_to_the_record_before(self):
        previous = "https://instance.example/nav_to.do?uri=1"
        self.create(replace(NOTICE, key=f"{NOTICE.key}-2", previous_link=previous))
        assert previous in next(iter(self.standin.records.values()))["description"]

    def test_somebody_elses_record_is_left_alone(self):
        remote = self.create()
        row = self.records()[0]
        row["correlation_id"] = "theirs"
        with pytest.raises(PlatformError, match="left alone"):
            self.update(remote, "resolve", status="resolved")
        assert row["state"] == "1"

    def test_a_search_that_was_ignored_is_not_taken_for_an_answer(self):
        self.create(replace(NOTICE, key="theirs"))
        rows = {"result": [{"sys_id": "1" * 32, "number": "INC1", "state": "1", "correlation_id": "theirs"}]}
        self.standin.fault("status", code=200, body=rows)
        with pytest.raises(PlatformError, match="ignored the search"):
            self.platform.find(self.call(), self.settings, NOTICE.key)

    def test_a_key_cannot_add_clauses_to_the_query(self):
        with pytest.raises(PlatformError):
            self.platform.find(self.call(), self.settings, "x^ORstate=1")
        assert not self.standin.seen

    def test_a_cancelled_transaction_is_no_success_although_it_is_a_200(self):
        self.standin.fault("status", code=200, body=TRANSACTION_CANCELLED)
        error = self.failure()
        assert error.in_doubt
        assert "Transaction cancelled" in str(error)

    def test_a_deleted_record_names_the_fix(self):
        remote = self.create()
        self.standin.remove(self.records()[0]["sys_id"])
        with pytest.raises(PlatformError, match="create the ticket anew") as caught:
            self.update(remote, "acknowledge", status="acknowledged")
        assert caught.value.permanent

    def test_the_resolution_code_can_be_set(self):
        self.settings["closeCode"] = "Known error"
        self.create(replace(NOTICE, status="resolved"))
        assert self.records()[0]["close_code"] == "Known error"
        assert "anna" in self.records()[0]["close_notes"]

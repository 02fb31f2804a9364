"""Jira: the contract, and what projects, workflows and a lagging search do to it."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from platforms.contract import PlatformError
from tests.test_platform_contract import NOTICE, PlatformContract, hostile


class TestJira(PlatformContract):
    name = "jira"
    refused = "Invalid e-mail or API token"
    wrong = {"apiToken": "wrong"}

    @pytest.fixture(autouse=True)
    def _workflow(self, _fresh) -> Iterator[None]:
        kept = {name: getattr(self.standin, name) for name in ("projects", "issue_types", "permissions", "workflow")}
        yield
        for name, value in kept.items():
            setattr(self.standin, name, value)
        self.standin.resolution, self.standin.priority_on_screen = "absent", True

    def issues(self):
        return [issue for issue in self.standin.issues.values() if NOTICE.key in issue.labels]

    def tickets(self):
        return len(self.issues())

    def status(self):
        return {"new": "open", "indeterminate": "acknowledged", "done": "resolved"}[self.issues()[0].category]

    def raised(self):
        return self.issues()[0].fields["priority"] == "Highest"

    def said(self):
        issue = self.issues()[0]
        return "\n".join([issue.summary, issue.text, *(comment["text"] for comment in issue.comments)])

    def test_the_ticket_links_to_the_issue(self):
        remote = self.create()
        assert (remote.id, remote.url) == ("OPS-1", f"{self.standin.url}/browse/OPS-1")

    def test_an_issue_hidden_from_search_is_found_once_the_index_has_it(self):
        self.standin.lag = 60
        self.create()
        assert self.platform.find(self.call(), self.settings, NOTICE.key) is None
        self.standin.lag = 0
        assert self.platform.find(self.call(), self.settings, NOTICE.key).id == "OPS-1"

    def test_of_two_issues_the_oldest_is_ours(self):
        self.create()
        self.create()
        assert self.platform.find(self.call(), self.settings, NOTICE.key).id == "OPS-1"

    def test_an_issue_without_our_label_is_not_ours_although_the_search_gave_it(self):
        theirs = {"key": "OPS-9", "fields": {"labels": ["theirs"]}}
        self.standin.fault("status", code=200, body={"issues": [theirs]}, path="/search/jql")
        assert self.platform.find(self.call(), self.settings, NOTICE.key) is None

    def test_a_wrong_token_never_means_that_there_is_no_issue(self):
        self.create()
        self.settings |= self.wrong
        with pytest.raises(PlatformError) as caught:
            self.platform.find(self.call(), self.settings, NOTICE.key)
        assert caught.value.status == 401

    def test_a_key_cannot_reach_beyond_its_quotes(self):
        self.create()
        for key in ('x" OR labels != "y', "x\\", 'x") ORDER BY key'):
            assert self.platform.find(self.call(), self.settings, key) is None

    def test_without_a_project_key_the_only_project_is_used(self):
        del self.settings["projectKey"]
        assert self.create().id == "OPS-1"
        assert self.platform.find(self.call(), self.settings, NOTICE.key).id == "OPS-1"
        assert self.platform.test(self.call(), self.settings) == "Connection successful"

    @pytest.mark.parametrize(("projects", "said"), [({"OPS": "a", "DEV": "b"}, "several projects"), ({}, "no project")])
    def test_without_a_project_key_and_without_one_project_the_fix_is_named(self, projects, said):
        self.settings["projectKey"] = ""
        self.standin.projects = projects
        error = self.failure()
        assert error.permanent
        assert "projectKey" in str(error)
        assert said in str(error)

    def test_a_missing_issue_type_gives_way_to_one_that_the_project_has(self):
        self.standin.issue_types = ("Epic", "Bug")
        assert self.create().id == "OPS-1"
        assert self.issues()[0].fields["issuetype"] == "Bug"
        assert "Bug will be used" in self.platform.test(self.call(), self.settings)

    def test_a_project_without_labels_gets_no_issue_that_could_not_be_found_again(self):
        body = {"errorMessages": [], "errors": {"labels": "Field 'labels' cannot be set."}}
        self.standin.fault("status", code=400, body=body)
        error = self.failure()
        assert error.permanent
        assert "add the field Labels to the create screen" in str(error)

    def test_a_label_that_is_not_there_after_creating_is_set_again(self):
        self.standin.fault("status", code=200, body={"fields": {"labels": []}}, method="GET")
        self.create()
        edits = [json.loads(seen.body) for seen in self.standin.seen if seen.method == "PUT"]
        assert edits == [{"update": {"labels": [{"add": NOTICE.key}]}}]

    def test_an_issue_whose_label_cannot_be_looked_at_is_created_all_the_same(self):
        self.standin.fault("status", code=503, method="GET")
        assert self.create().id == "OPS-1"

    def test_what_jira_refuses_is_told_in_its_words(self):
        self.standin.fault("status", code=400, body={"errorMessages": ["no room"], "errors": {"summary": "too long"}})
        assert "no room; summary: too long" in str(self.failure())

    def test_a_project_without_priorities_still_gets_its_issue(self):
        self.standin.priority_on_screen = False
        remote = self.create()
        self.update(remote, "escalate", status="escalated", escalated=True)
        assert "could not be set to Highest" in self.said()

    @pytest.mark.parametrize("screen", ["absent", "optional", "required"])
    def test_a_resolution_is_given_where_the_screen_has_it(self, screen):
        self.standin.resolution = screen
        remote = self.create()
        self.update(remote, "resolve", status="resolved")
        assert (self.status(), self.issues()[0].resolution) == ("resolved", "Done")

    def test_an_issue_that_somebody_moved_there_already_is_left_alone(self):
        remote = self.create()
        self.standin.move(remote.id, "Done")
        self.update(remote, "resolve", status="resolved")
        assert self.issues()[0].history == ["Done"]

    def test_without_a_fitting_transition_the_error_names_the_fix(self):
        self.standin.workflow = {"To Do": [("21", "Done", "In Progress")], "In Progress": [], "Done": []}
        remote = self.create()
        with pytest.raises(PlatformError, match="add such a transition to the project's workflow") as caught:
            self.update(remote, "resolve", status="resolved")
        assert caught.value.permanent
        assert not caught.value.recreate
        assert self.status() == "open"

    def test_an_issue_created_without_reaching_its_state_is_looked_for_before_another_is_made(self):
        self.standin.workflow = {"To Do": [], "In Progress": [], "Done": []}
        error = self.failure(replace(NOTICE, status="resolved"))
        assert error.in_doubt
        assert self.platform.find(self.call(), self.settings, NOTICE.key).id == "OPS-1"

    def test_a_deleted_issue_is_told_apart_from_a_wrong_token(self):
        remote = self.create()
        self.standin.remove(remote.id)
        with pytest.raises(PlatformError, match="create the ticket anew") as caught:
            self.update(remote, "acknowledge", status="acknowledged")
        assert caught.value.permanent
        assert not caught.value.recreate
        self.settings |= self.wrong
        with pytest.raises(PlatformError, match="Invalid e-mail or API token"):
            self.update(remote, "acknowledge", status="acknowledged")

    def test_the_connection_test_names_missing_rights_and_projects(self):
        self.standin.permissions = {"BROWSE_PROJECTS", "ADD_COMMENTS"}
        with pytest.raises(PlatformError, match="may not create issues, transition issues"):
            self.platform.test(self.call(), self.settings)
        self.settings["projectKey"] = "NONE"
        with pytest.raises(PlatformError, match="no project NONE"):
            self.platform.test(self.call(), self.settings)

    def test_a_conflict_is_tried_again(self):
        remote = self.create()
        self.standin.fault("status", code=409, path="/transitions", method="POST")
        with pytest.raises(PlatformError) as caught:
            self.update(remote, "resolve", status="resolved")
        assert not caught.value.permanent
        self.update(remote, "resolve", status="resolved")
        assert self.status() == "resolved"

    def test_the_longest_description_is_a_document_of_32767(self):
        self.create(hostile('"\n' * 20_000))
        assert len(json.dumps(self.issues()[0].fields["description"], ensure_ascii=False)) < 32_767

"""Signing in by the organisation's provider: the whole login over real sockets, what is not believed, who gets what.

The browser's part is done by hand for most, so that each test can spoil what it brings back.
"""

import dataclasses
import re
import time
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from cryptography.fernet import Fernet
from django.contrib.auth.models import Group, User
from django.test import Client

from auditlog.models import Entry
from tests.standins import Standins
from tests.test_access import TestSettings as Environment
from ticketing import provider
from ticketing.models import Identity

LIST = "/admin/incidents/incident/"
BEGIN = "/admin/sso/"
CALLBACK = "/admin/sso/callback/"


class Browser:
    """A browser of ours, that can be stopped between the provider and us."""

    def __init__(self) -> None:
        self.client = Client()

    def brought_back(self, begin: str = BEGIN) -> dict[str, str]:
        """What the provider sends us through the browser."""
        sent = self.client.get(begin)
        assert sent.status_code == 302, sent.content
        self.asked = {name: values[0] for name, values in parse_qs(urlsplit(sent["Location"]).query).items()}
        # A session of its own: the provider is another site.
        back = requests.get(sent["Location"], allow_redirects=False, timeout=60)
        assert back.status_code == 302, back.text
        return {name: values[0] for name, values in parse_qs(urlsplit(back.headers["Location"]).query).items()}

    def login(self, begin: str = BEGIN):
        return self.client.get(CALLBACK, self.brought_back(begin))

    def may_read(self) -> bool:
        return self.client.get(LIST).status_code == 200


@pytest.fixture
def browser(db, sso) -> Browser:
    return Browser()


def roles(name: str = "anna") -> set[str]:
    return set(User.objects.get(username=name).groups.values_list("name", flat=True))


class TestALogin:
    def test_is_whole_with_a_client_that_follows_redirects(self, live_server, sso, settings, client_of):
        settings.PUBLIC_URL = live_server.url
        sso.redirect_uri = live_server.url + CALLBACK
        with requests.Session() as site:
            self.log_in(site, live_server.url, sso)

    def log_in(self, site: requests.Session, url: str, sso) -> None:
        page = site.get(f"{url}/i/inc-20240301-001", timeout=60)
        [link] = re.findall(r'<a class="button" href="(/admin/sso/[^"]*)">Sign in with Example SSO</a>', page.text)
        done = site.get(url + link.replace("&amp;", "&"), timeout=60)
        steps = [urlsplit(step.url).path for step in done.history]
        assert steps == [BEGIN, "/realm/authorize", CALLBACK]
        assert urlsplit(done.url).path == f"{LIST}inc-20240301-001/"
        assert (done.status_code, "Responder" in done.text, "Change password" in done.text) == (404, True, False)
        assert site.get(url + LIST, timeout=60).status_code == 200
        assert sso.counts["login"] == 1

    def test_asks_for_a_code_with_state_nonce_and_a_challenge_that_are_new_each_time(self, browser):
        browser.brought_back()
        first = browser.asked
        browser.brought_back()
        assert first["code_challenge_method"] == "S256"
        for name in ("state", "nonce", "code_challenge"):
            assert len(first[name]) >= 32
            assert first[name] != browser.asked[name]

    def test_makes_a_user_without_a_password_and_the_audit_tells_the_role(self, browser):
        assert browser.login().headers["Location"] == LIST
        user = User.objects.get()
        assert (user.username, user.email, user.has_usable_password()) == ("anna", "anna@example.com", False)
        assert (user.is_superuser, user.is_staff) == (False, False)
        entry = Entry.objects.get()
        assert (entry.subject, entry.action) == ("user:anna", "role set")
        assert entry.data == {"from": "none", "to": "responder"}
        assert entry.details == "anna signed in by Example SSO: role responder, before none"

    def test_leads_to_the_page_that_was_asked_for_and_nowhere_else(self, browser):
        assert browser.login(f"{BEGIN}?next=/admin/").headers["Location"] == "/admin/"
        for elsewhere in ("https://evil.example/", "//evil.example", "javascript:alert(1)", "/\\evil.example"):
            assert browser.login(f"{BEGIN}?next={elsewhere}").headers["Location"] == LIST

    def test_changes_the_sessions_key(self, browser):
        back = browser.brought_back()
        before = browser.client.cookies["session_18081"].value
        browser.client.get(CALLBACK, back)
        assert browser.client.cookies["session_18081"].value != before

    def test_the_same_person_is_the_same_user_whatever_they_are_called_now(self, browser, sso):
        browser.login()
        sso.person |= {"preferred_username": "anna.new", "email": "new@example.com"}
        assert Browser().login().status_code == 302
        assert User.objects.get().username == "anna"

    def test_the_local_login_stays(self, browser, sso):
        User.objects.create_user("emergency", password="a-long-password").groups.add(
            Group.objects.get_or_create(name="admin")[0]
        )
        sso.down()
        try:
            assert browser.client.get(BEGIN).status_code == 503
            form = {"username": "emergency", "password": "a-long-password", "next": LIST}
            assert browser.client.post("/admin/login/", form)["Location"] == LIST
        finally:
            sso.up()

    def test_without_the_setting_there_is_none(self, db, client):
        assert "Sign in with" not in client.get("/admin/login/").content.decode()
        assert (client.get(BEGIN).status_code, client.get(CALLBACK).status_code) == (404, 404)

    def test_a_session_ends_when_the_setting_goes(self, browser, settings):
        browser.login()
        assert browser.may_read()
        settings.SSO = None
        settings.AUTHENTICATION_BACKENDS = settings.AUTHENTICATION_BACKENDS[:-1]
        assert not browser.may_read()


class TestWhatIsNotBelieved:
    @pytest.fixture
    def refused(self, browser):
        def check(status: int = 403) -> None:
            answer = browser.login()
            assert answer.status_code == status
            assert answer["Content-Type"].startswith("text/html")
            assert not browser.may_read()
            assert not User.objects.exists()

        return check

    CLAIMS = {
        "expired": lambda header, claims: claims.update(exp=time.time() - 120, iat=time.time() - 500),
        "without an end": lambda header, claims: claims.pop("exp"),
        "not valid yet": lambda header, claims: claims.update(nbf=time.time() + 600),
        "for another audience": lambda header, claims: claims.update(aud="another"),
        "for others too": lambda header, claims: claims.update(aud=["ticketing", "another"], azp="another"),
        "without an audience": lambda header, claims: claims.pop("aud"),
        "of another issuer": lambda header, claims: claims.update(iss="https://evil.example"),
        "of an issuer that begins alike": lambda header, claims: claims.update(iss=claims["iss"] + "/"),
        "with another nonce": lambda header, claims: claims.update(nonce="x" * 32),
        "without a nonce": lambda header, claims: claims.pop("nonce"),
        "of nobody": lambda header, claims: claims.pop("sub"),
        "of an empty name": lambda header, claims: claims.update(sub=""),
        "of a number": lambda header, claims: claims.update(sub=5),
        "unsigned": lambda header, claims: header.update(alg="none"),
        "signed with the public key as a secret": lambda header, claims: header.update(alg="HS256"),
        "said to be of another algorithm": lambda header, claims: header.update(alg="RS384"),
        "said to be of another kind": lambda header, claims: header.update(alg="ES256"),
        "of an unknown key": lambda header, claims: header.update(kid="second"),
    }

    @pytest.mark.parametrize("what", CLAIMS)
    def test_an_id_token(self, refused, sso, what):
        sso.spoil = self.CLAIMS[what]
        refused()

    def test_a_strangers_signature(self, refused, sso):
        sso.sign_with = sso.stranger
        refused()

    def test_a_login_that_this_browser_did_not_begin(self, browser, sso):
        """Somebody else's code, with their state, with ours, or with none: nobody is signed in as them."""
        theirs, ours = Browser().brought_back(), browser.brought_back()
        for brought in (theirs, theirs | {"state": ours["state"]}, {"code": theirs["code"]}, theirs | {"state": ""}):
            assert browser.client.get(CALLBACK, brought).status_code in (400, 403)
            assert not browser.may_read()
        assert Browser().client.get(CALLBACK, ours).status_code == 400
        assert not User.objects.exists()

    def test_the_same_code_twice(self, browser):
        back = browser.brought_back()
        assert browser.client.get(CALLBACK, back).status_code == 302
        assert browser.client.get(CALLBACK, back).status_code == 400
        assert browser.may_read(), "who is signed in stays so"

    def test_a_code_that_the_provider_does_not_know(self, browser):
        assert browser.client.get(CALLBACK, browser.brought_back() | {"code": "made-up"}).status_code == 403
        assert browser.client.get(CALLBACK, browser.brought_back() | {"code": "x" * 5000}).status_code == 403

    def test_a_refusal_signs_nobody_in_or_out(self, browser, sso):
        browser.login()
        assert browser.client.get(CALLBACK, {"error": "access_denied", "state": "x"}).status_code == 403
        assert browser.may_read()
        sso.person = None
        assert Browser().login().status_code == 403

    def test_userinfo_about_somebody_else(self, refused, sso):
        sso.only_in_userinfo = {"groups"}
        sso.spoil = lambda header, claims: claims.update(sub="somebody-else")
        refused()

    def test_a_password_form_with_a_code_in_its_address(self, browser):
        form = {"username": "anna", "password": "x"}
        assert browser.client.post("/admin/login/?code=a&state=b", form).status_code == 200

    @pytest.mark.parametrize(
        "published",
        [
            {"issuer": "https://evil.example"},
            {"authorization_endpoint": "javascript:alert(1)"},
            {"token_endpoint": None},
            {"jwks_uri": "file:///etc/passwd"},
        ],
    )
    def test_a_provider_that_publishes_nonsense(self, browser, sso, published):
        sso.published = published
        assert browser.client.get(BEGIN).status_code == 503

    def test_plain_http_and_private_addresses_off_the_list(self, browser, sso, settings):
        settings.EGRESS_ALLOWED_NETWORKS = ()
        assert browser.client.get(BEGIN).status_code == 503
        settings.EGRESS_ALLOWED_NETWORKS, settings.LOCAL_MODE = Standins.NETWORKS, False
        assert browser.client.get(BEGIN).status_code == 503, "endpoints without TLS"
        assert sso.counts["login"] == 0

    def test_a_redirect_of_the_token_endpoint(self, browser, sso):
        sso.published = {"token_endpoint": f"{sso.issuer}/authorize"}  # answers 405
        assert browser.login().status_code == 503

    @pytest.mark.parametrize("path", [".*configuration", ".*/token", ".*/keys"])
    def test_a_provider_that_hangs_holds_nobody_for_long(self, browser, sso, monkeypatch, path):
        monkeypatch.setattr(provider, "LOGIN_SECONDS", 0.3)
        sso.fault("hang", path=path)
        began = time.monotonic()
        answer = browser.client.get(BEGIN)
        if answer.status_code == 302:
            answer = browser.login()
        assert answer.status_code == 503
        assert time.monotonic() - began < 30  # and it hangs for as long as anybody waits

    def test_a_key_that_is_new_is_found(self, browser, sso):
        browser.login()
        sso.key_id = "second"
        provider._kept = dataclasses.replace(provider._kept, keys_read_at=time.monotonic() - 61)
        assert Browser().login().status_code == 302


class TestRoles:
    @pytest.mark.parametrize(
        ("groups", "expected"),
        [
            (["/ops"], {"responder"}),
            (["/sre"], {"admin"}),
            (["/staff"], {"viewer"}),
            (["/all", "/staff"], {"viewer"}),
            (["/sre", "/ops", "/other", 5, None, {"a": 1}], {"admin", "responder"}),
            ("/ops", {"responder"}),
            ([], None),
            (["/OPS", "ops", "/ops/", "/ops,/sre", " /sre", "admin", "responder"], None),
            ("/ops /sre", None),
            (None, None),
            (5, None),
            ({"/ops": True}, None),
            (True, None),
        ],
    )
    def test_come_from_the_groups_letter_by_letter(self, browser, sso, groups, expected):
        sso.person["groups"] = groups
        answer = browser.login()
        if expected is None:
            assert answer.status_code == 403
            text = answer.content.decode()
            assert "Example SSO knows you, but none of your groups there may use this console" in text
            assert "Ask #platform in the chat." in text
            assert not User.objects.exists()
            assert not browser.may_read()
        else:
            assert answer.status_code == 302
            assert roles() == expected

    @pytest.mark.parametrize("claim", ["https://example.com/groups", "realm_access.roles", "roles"])
    def test_may_stand_in_any_claim(self, browser, sso, settings, claim):
        settings.SSO = dataclasses.replace(settings.SSO, groups_claim=claim)
        del sso.person["groups"]
        sso.person |= {"realm_access": {"roles": ["/sre"]}} if claim == "realm_access.roles" else {claim: ["/sre"]}
        browser.login()
        assert roles() == {"admin"}

    def test_may_be_told_by_userinfo_alone(self, browser, sso):
        sso.only_in_userinfo = {"groups", "preferred_username"}
        browser.login()
        assert roles() == {"responder"}

    def test_follow_the_claims_at_every_login(self, browser, sso):
        browser.login()
        sso.person["groups"] = ["/sre"]
        Browser().login()
        assert roles() == {"admin"}
        sso.person["groups"] = ["/staff"]
        Browser().login()
        assert roles() == {"viewer"}
        assert [entry.data["to"] for entry in Entry.objects.about("user:anna")] == ["responder", "admin", "viewer"]

    def test_none_left_ends_what_is_open_too(self, browser, sso):
        browser.login()
        assert browser.may_read()
        sso.person["groups"] = []
        assert Browser().login().status_code == 403
        assert roles() == set()
        assert not browser.may_read()

    def test_what_was_given_by_hand_lasts_until_the_next_login(self, browser):
        browser.login()
        user = User.objects.get()
        user.groups.add(Group.objects.get_or_create(name="admin")[0], Group.objects.create(name="of our own"))
        User.objects.update(is_superuser=True)
        Browser().login()
        assert roles() == {"responder", "of our own"}
        assert not User.objects.get().is_superuser

    def test_a_disabled_user_is_told_whom_to_ask(self, browser):
        browser.login()
        User.objects.update(is_active=False)
        answer = Browser().login()
        assert answer.status_code == 403
        assert "Your user is disabled here. Ask #platform in the chat." in answer.content.decode()
        assert not browser.may_read()


class TestNames:
    @pytest.mark.parametrize("name", ["anna", "ANNA"])
    def test_a_local_user_is_never_taken_over(self, browser, sso, name):
        User.objects.create_user("anna", email="anna@example.com", password="x", is_superuser=True)
        sso.person["preferred_username"] = name
        assert browser.login().status_code == 409
        assert not browser.may_read()
        assert not Identity.objects.exists()

    def test_nor_is_one_of_another_person_at_the_provider(self, browser, sso):
        browser.login()
        sso.person |= {"sub": "another"}
        assert Browser().login().status_code == 409

    @pytest.mark.parametrize("name", ["a" * 151, "a b", "a\nb", "<script>", "a:b", ["anna"], {"a": 1}])
    def test_odd_ones_are_refused(self, browser, sso, name):
        sso.person["preferred_username"] = name
        answer = browser.login()
        assert answer.status_code == 403
        assert b"'<script>'" not in answer.content
        assert not User.objects.exists()

    def test_where_the_claim_is_missing_the_email_then_the_subject(self, browser, sso):
        del sso.person["preferred_username"]
        browser.login()
        assert User.objects.get().username == "anna@example.com"
        sso.person = {"sub": "f4", "groups": ["/ops"], "email": None}
        Browser().login()
        assert User.objects.filter(username="f4", email="").exists()


class TestSettings:
    SAFE = {
        "LOCAL_MODE": "0",
        "SECRET_KEY": "k" * 50,
        "ENCRYPTION_KEYS": Fernet.generate_key().decode(),
        "ALLOWED_HOSTS": "tickets.example.com",
        "PUBLIC_URL": "https://tickets.example.com",
        "OIDC_ISSUER": "https://sso.example.com/realms/main",
        "OIDC_CLIENT_ID": "ticketing",
        "OIDC_CLIENT_SECRET": "c" * 20,
        "OIDC_RESPONDER_GROUPS": "/ops, on-call",
    }

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            ({}, ""),
            ({"LOCAL_MODE": "1", "PUBLIC_URL": "", "OIDC_ISSUER": "http://127.0.0.1:8080/realm"}, ""),
            ({"OIDC_ISSUER": ""}, "OIDC_ISSUER"),
            ({"OIDC_CLIENT_ID": ""}, "OIDC_CLIENT_ID"),
            ({"OIDC_CLIENT_SECRET": ""}, "OIDC_CLIENT_SECRET"),
            ({"OIDC_RESPONDER_GROUPS": " , "}, "OIDC_RESPONDER_GROUPS"),
            ({"OIDC_ISSUER": "http://sso.example.com"}, "OIDC_ISSUER"),
            ({"OIDC_ISSUER": "sso.example.com"}, "OIDC_ISSUER"),
            ({"OIDC_ISSUER": "https://sso.example.com/?x=1"}, "OIDC_ISSUER"),
            ({"PUBLIC_URL": "http://tickets.example.com"}, "PUBLIC_URL"),
            ({"OIDC_SCOPES": "email groups"}, "OIDC_SCOPES"),
        ],
    )
    def test_are_whole_and_safe_or_refused_with_one_line(self, tmp_path, changed, named):
        done = Environment.start(None, tmp_path, **self.SAFE | changed)
        if not named:
            assert (done.returncode, done.stderr) == (0, "")
            return
        assert (done.returncode, done.stdout) == (78, "")
        [line] = done.stderr.splitlines()
        assert line.startswith("Refused to start: ")
        assert named in line
        assert self.SAFE["OIDC_CLIENT_SECRET"] not in line

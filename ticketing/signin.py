"""Signing in by the organisation's OpenID provider: its groups are our roles, anew at every login.

A local user is never taken over: who signs in by the provider is a user of their own, known by the provider's `sub`.
The local login stays, for the day on which the provider cannot be reached.
"""

import logging

from django.conf import settings
from django.contrib import auth
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractUser, Group
from django.core.exceptions import SuspiciousOperation, ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from mozilla_django_oidc.auth import OIDCAuthenticationBackend
from mozilla_django_oidc.views import OIDCAuthenticationCallbackView, OIDCAuthenticationRequestView

from auditlog import models as auditlog
from ticketing import errors, provider
from ticketing.access import OF_GROUPS, RolesAtOnce
from ticketing.models import Identity

log = logging.getLogger(__name__)

CALLBACK = "sso-callback"
LONGEST_CODE = 4000


class Turned(Exception):
    """Somebody is not let in. The text is for them."""

    def __init__(self, text: str, status: int = 403) -> None:
        super().__init__(text)
        self.status = status


class FromSettings:
    """What the library reads from Django's settings, from ours."""

    @staticmethod
    def get_settings(attr: str, *default: object) -> object:
        known = {
            "OIDC_RP_CLIENT_ID": settings.SSO.client_id,
            "OIDC_RP_SCOPES": settings.SSO.scopes,
            "OIDC_USE_PKCE": True,
            "OIDC_AUTHENTICATION_CALLBACK_URL": CALLBACK,
            "LOGIN_REDIRECT_URL": reverse("admin:incidents_incident_changelist"),
        }
        if attr == "OIDC_OP_AUTHORIZATION_ENDPOINT":
            return provider.endpoints().authorization
        return known.get(attr, *default) if default else known[attr]


class Begin(FromSettings, OIDCAuthenticationRequestView):
    """Sends the browser to the provider, with a state, a nonce and PKCE's challenge that only this session answers."""

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"redirect_uri": _callback_address()}


def begin(request: HttpRequest) -> HttpResponse:
    if settings.SSO is None:
        raise Http404
    try:
        return Begin.as_view()(request)
    except provider.Unreachable as problem:
        return _unreachable(request, problem)


class Callback(FromSettings, OIDCAuthenticationCallbackView):
    """Takes the browser back, with a code for who it is."""

    def get(self, request: HttpRequest) -> HttpResponse:
        if settings.SSO is None:
            raise Http404
        name = settings.SSO.name
        try:
            if "code" not in request.GET:
                _forget_state(request)
                log.warning("%s refused a login: %s", name, request.GET.get("error", "")[:100])
                raise Turned(f"{name} did not sign you in.")
            return super().get(request)
        except SuspiciousOperation:  # a state that is not this session's
            return errors.shown(request, 400, "This login was not begun here, or it is too old. Please begin again.")
        except Turned as turned:
            return errors.shown(request, turned.status, str(turned))
        except provider.Unreachable as problem:
            return _unreachable(request, problem)
        except provider.Untrue as problem:
            log.warning("A login by %s is not believed: %s.", name, problem)
            return errors.shown(request, 403, f"What {name} said of you could not be believed. Please begin again.")

    def login_failure(self) -> HttpResponse:
        return errors.shown(self.request, 400, "This login was not begun here, or it is too old. Please begin again.")

    def login_success(self) -> HttpResponse:
        auth.login(self.request, self.user)
        return HttpResponseRedirect(self.success_url)


class ByProvider(RolesAtOnce, OIDCAuthenticationBackend):
    """Makes a user of ours of who the provider says it is. Its sessions end with the setting that turns it off."""

    def __init__(self) -> None:
        """Nothing: the library would read every setting for every request."""

    def authenticate(self, request: HttpRequest, *, nonce: str, code_verifier: str) -> AbstractUser:
        """The user. Raises `Turned`, `provider.Unreachable` and `provider.Untrue`."""
        code = request.GET["code"]
        if len(code) > LONGEST_CODE:
            raise provider.Untrue("the code is too long")
        provider.endpoints()
        with provider.asked() as caller:
            claims = provider.redeem(
                caller, code=code, verifier=code_verifier, nonce=nonce, redirect_uri=_callback_address()
            )
        return admit(claims, request_id=request.id)


def admit(claims: dict, *, request_id: str) -> AbstractUser:
    """The user of these claims, with the roles of their groups and no other. Raises `Turned` where there is none."""
    sso = settings.SSO
    groups = provider.groups_of(claims) or set()
    roles = {role for role, names in sso.groups.items() if names & groups}
    try:
        with transaction.atomic():
            user = _known(claims["sub"]) or (_new(claims) if roles else None)
            if user is not None:
                _give(user, roles, request_id)
    except IntegrityError as error:  # two first logins at once
        raise Turned("You were signing in somewhere else at this moment. Please try again.", 409) from error
    if not roles:
        log.warning("%s signed in somebody who has no group with a role here: %s.", sso.name, claims["sub"])
        raise Turned(f"{sso.name} knows you, but none of your groups there may use this console. Ask {sso.contact}.")
    if not user.is_active:
        raise Turned(f"Your user is disabled here. Ask {sso.contact}.")
    return user


def _known(subject: str) -> AbstractUser | None:
    found = Identity.objects.select_related("user").filter(issuer=settings.SSO.issuer, subject=subject).first()
    return found and found.user


def _new(claims: dict) -> AbstractUser:
    """A user without a password, called as the provider calls them."""
    model = get_user_model()
    given = claims.get(settings.SSO.username_claim) or claims.get("email") or claims["sub"]
    user = model(username=str(given))
    try:
        model.username_validator(user.username)
        user.set_unusable_password()
        user.full_clean(exclude=["email"], validate_unique=False)
    except ValidationError as error:
        raise Turned(f"A user cannot be called {user.username[:150]!r} here. Ask {settings.SSO.contact}.") from error
    if model.objects.filter(username__iexact=user.username).exists():
        # Nobody becomes somebody else by what they are called.
        raise Turned(f"There is another user called {user.username} here already. Ask {settings.SSO.contact}.", 409)
    user.email = _email(claims)
    user.save()
    Identity.objects.create(issuer=settings.SSO.issuer, subject=claims["sub"], user=user)
    return user


def _email(claims: dict) -> str:
    email = claims.get("email")
    try:
        validate_email(email)
    except ValidationError:
        return ""
    return email if len(email) <= 254 else ""


def _give(user: AbstractUser, roles: set[str], request_id: str) -> None:
    """Exactly these roles, whatever an admin gave by hand since the last login."""
    before = set(user.groups.filter(name__in=OF_GROUPS).values_list("name", flat=True))
    if user.is_superuser:
        before |= {"superuser"}
        user.is_superuser = False
        user.save(update_fields=["is_superuser"])
    if before == roles:
        return
    user.groups.remove(*Group.objects.filter(name__in=OF_GROUPS).exclude(name__in=roles))
    user.groups.add(*(Group.objects.get_or_create(name=role)[0] for role in roles))
    old, new = (", ".join(sorted(some)) or "none" for some in (before, roles))
    details = f"{user.get_username()} signed in by {settings.SSO.name}: role {new}, before {old}"
    about = {"actor": "system", "at": timezone.now(), "request_id": request_id, "details": details}
    entry = auditlog.entry(f"user:{user.get_username()}", "role set", **about, **{"from": old, "to": new})
    auditlog.write([entry])


def _callback_address() -> str:
    """As it is registered with the provider, whatever host a request names."""
    return settings.PUBLIC_URL + reverse(CALLBACK)


def _forget_state(request: HttpRequest) -> None:
    if request.session.get("oidc_states", {}).pop(request.GET.get("state", ""), None):
        request.session.modified = True


def _unreachable(request: HttpRequest, problem: Exception) -> HttpResponse:
    log.error("%s cannot be asked: %s.", settings.SSO.name, problem)
    return errors.shown(
        request, 503, f"{settings.SSO.name} cannot be asked now. Try again shortly, or log in with a local user."
    )

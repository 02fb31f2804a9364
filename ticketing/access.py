"""Who is calling, and what they may do. Deny by default: a view that names no role is for admins."""

import ipaddress
from dataclasses import dataclass

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.db.models import Exists, OuterRef
from django.http.request import split_domain_port
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from config import keys
from ticketing import limits

# What each role may do, besides what it is called after.
ALLOWS = {
    "producer": {"producer"},
    "viewer": {"viewer"},
    "responder": {"viewer", "responder"},
    "admin": {"producer", "viewer", "responder", "admin"},
}
OF_GROUPS = ("admin", "responder", "viewer")  # the highest first
READING = ("GET", "HEAD")
# What a request carries that came from somewhere else, beside X-Forwarded-*.
OF_PROXIES = {"HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP"}


@dataclass(frozen=True)
class Principal:
    """Who calls: as the audit names them, and their role."""

    actor: str
    role: str | None
    is_authenticated = True

    def may(self, role: str) -> bool:
        return self.role is not None and role in ALLOWS[self.role]


class Nobody:
    actor = ""
    role = None
    is_authenticated = False

    def may(self, role: str) -> bool:
        return False


def nobody() -> Nobody:
    return Nobody()


def principal_of(user) -> Principal:
    """A console user's principal: superusers are admins, others have the role of their groups, the highest."""
    if user.is_superuser:
        names = {"admin"}
    elif hasattr(user, f"in_{OF_GROUPS[0]}"):
        names = {role for role in OF_GROUPS if getattr(user, f"in_{role}")}
    else:
        names = set(user.groups.values_list("name", flat=True))
    role = next((role for role in OF_GROUPS if role in names), None)
    return Principal(f"user:{user.get_username()}", role)


class RolesAtOnce(ModelBackend):
    """Reads a signed-in user together with their roles: every page asks for both."""

    def get_user(self, user_id):
        model = get_user_model()
        groups = model.groups.through.objects.filter(user_id=OuterRef("pk"))
        roles = {f"in_{role}": Exists(groups.filter(group__name=role)) for role in OF_GROUPS}
        user = model._default_manager.annotate(**roles).filter(pk=user_id).first()
        return user if user and self.user_can_authenticate(user) else None


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer tka_…`"""

    def authenticate(self, request: Request):
        scheme, _, text = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        key = keys.find(text.strip())
        if key is None:
            raise AuthenticationFailed("This API key is unknown, expired or revoked.")
        principal = Principal(f"key:{key.name}", key.role)
        request.META[limits.CALLER] = principal.actor
        return principal, key

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class ConsoleAuthentication(SessionAuthentication):
    """A console login, with its CSRF token where something is changed."""

    def authenticate(self, request: Request):
        found = super().authenticate(request)
        if not found:
            return None
        principal = principal_of(found[0])
        request.META[limits.CALLER] = principal.actor
        return principal, None


class LocalAuthentication(BaseAuthentication):
    """On a laptop in local mode: whoever is on the machine itself, and no web page they happen to visit."""

    def authenticate(self, request: Request):
        return (Principal("local", "admin"), None) if is_local(request._request) else None


def is_local(request) -> bool:
    """Whether the request was made on this machine, by no proxy and by no foreign page."""
    if not settings.LOCAL_MODE or not _is_loopback(request.META.get("REMOTE_ADDR", "")):
        return False
    if any(name in OF_PROXIES or name.startswith("HTTP_X_FORWARDED") for name in request.META):
        return False
    host = request.META.get("HTTP_HOST", "")
    origin = request.META.get("HTTP_ORIGIN")
    return _is_local_host(host) and origin in (None, f"http://{host}", f"https://{host}")


def _is_local_host(host: str) -> bool:
    name, _ = split_domain_port(host)
    return name == "localhost" or _is_loopback(name.strip("[]"))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class RoleRequired(BasePermission):
    """The view's `role`, or its `roles` by method. Whoever may read one thing may read all, but its secrets."""

    def has_permission(self, request: Request, view) -> bool:
        if not request.user.is_authenticated:
            return False
        roles = getattr(view, "roles", {})
        method = "GET" if request.method in READING else request.method
        role = roles.get(method, getattr(view, "role", "admin"))
        if request.user.may(role):
            return True
        raise PermissionDenied(f"This needs the role {role}; {request.user.actor} has {request.user.role or 'none'}.")

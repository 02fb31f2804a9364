"""Who may log in to the console: Django's pages for users and groups, opened by our roles.

Apart from `ticketing.console`, because Django's module registers with the site as it is imported.
"""

from django.contrib.admin import AdminSite, ModelAdmin, display
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import QuerySet
from django.http import HttpRequest

from ticketing.access import OF_GROUPS


def register(site: AdminSite) -> None:
    """Puts our pages in the place of Django's."""
    site.unregister((User, Group))
    site.register(User, Users)
    site.register(Group, Groups)


class RoleAdmin(ModelAdmin):
    """Permissions by our roles, not by Django's: whoever is an admin may manage who may log in."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.principal.may("admin")

    def has_view_permission(self, request: HttpRequest, obj=None) -> bool:
        return request.principal.may("admin")

    has_change_permission = has_delete_permission = has_view_permission

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.principal.may("admin")


class Users(RoleAdmin, UserAdmin):
    """A user's role is that of their groups: viewer, responder or admin. Superusers are admins."""

    list_display = ("username", "role", "email", "is_active", "last_login")
    list_filter = ("groups", "is_active")
    filter_horizontal = ()
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        ("Person", {"fields": ("first_name", "last_name", "email")}),
        ("Role", {"fields": ("is_active", "groups", "is_superuser")}),
        ("Seen", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = ((None, {"fields": ("username", "usable_password", "password1", "password2", "groups")}),)
    readonly_fields = ("last_login", "date_joined")


    def get_queryset(self, request: HttpRequest) -> QuerySet:
        return super().get_queryset(request).prefetch_related("groups")

    @display
    def role(self, user: User) -> str:
        """What the user may do here; nothing without one of the groups."""
        if user.is_superuser:
            return "admin"
        names = {group.name for group in user.groups.all()}
        return next((role for role in OF_GROUPS if role in names), "none")


class Groups(RoleAdmin):
    """A group that is named after a role gives it."""

    fields = ("name",)

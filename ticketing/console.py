"""The console: Django's admin with our pages in it."""

from django.contrib.admin import AdminSite


class Console(AdminSite):
    site_header = "Ticketing Agent"
    site_title = "Ticketing Agent"
    index_title = "Overview"
    site_url = None

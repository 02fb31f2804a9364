"""Django's settings of the floor: the product's, without what the product does around a request."""

from ticketing.settings import *  # noqa: F403

MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]  # gives answers their Content-Length
ROOT_URLCONF = "tests.bench.floor_views"
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_PARSER_CLASSES": ["ticketing.wire.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["ticketing.wire.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "ticketing.wire.JSONNegotiation",
    "UNAUTHENTICATED_USER": None,
}

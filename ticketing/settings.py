"""All settings, from the environment: runs on a bare clone in local mode, refuses what is unsafe elsewhere."""

from pathlib import Path
from urllib.parse import quote

import dj_database_url

from ticketing import environment as environ
from ticketing import processes

ROOT = Path(__file__).resolve().parent.parent

# --- What operators set -----------------------------------------------------------------------------------------------

LOCAL_MODE = environ.read("LOCAL_MODE")
DATA_DIR = Path(environ.read("DATA_DIR", str(ROOT / "data"))).resolve()
HOST = environ.listen_host(LOCAL_MODE)
PORT = environ.read("PORT")
SECRET_KEY = environ.secret_key(DATA_DIR, LOCAL_MODE)
ENCRYPTION_KEYS = environ.encryption_keys(DATA_DIR, LOCAL_MODE)
ALLOWED_HOSTS = environ.allowed_hosts(LOCAL_MODE)
TRUSTED_PROXIES = environ.networks("TRUSTED_PROXIES")
RATE_LIMIT_PER_SECOND = environ.whole("RATE_LIMIT_PER_SECOND", 0, 100_000, default=0 if LOCAL_MODE else None)
EGRESS_ALLOWED_NETWORKS = environ.networks("EGRESS_ALLOWED_NETWORKS")
PUBLIC_URL = str(environ.read("PUBLIC_URL", f"http://{HOST}:{PORT}")).rstrip("/")
# Quoted, because a folder may be called anything.
DATABASE_URL = environ.read("DATABASE_URL", f"sqlite:///{quote(str(DATA_DIR / 'ticketing.sqlite3'))}")
BROKER_URL = environ.read("BROKER_URL", processes.broker_url(DATA_DIR))
LOG_FORMAT = environ.read("LOG_FORMAT", "text" if LOCAL_MODE else "json")
LOG_LEVEL = environ.read("LOG_LEVEL")
DEBUG = False

# --- Django -----------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "ticketing.apps.ConsoleConfig",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "axes",
    "auditlog",
    "config",
    "incidents",
    "ticketing.apps.TicketingConfig",
]
MIDDLEWARE = [
    "ticketing.requests.RequestId",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "ticketing.requests.ContentSecurityPolicy",
    "ticketing.requests.SessionCookie",
    "ticketing.browsers.Sessions",
    "ticketing.sessions.Seen",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "ticketing.browsers.Users",
    "ticketing.browsers.Messages",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]
ROOT_URLCONF = "ticketing.urls"
WSGI_APPLICATION = "ticketing.wsgi.application"
APPEND_SLASH = False
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [ROOT / "ticketing" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

DATABASES = {"default": dj_database_url.parse(DATABASE_URL, conn_max_age=600, conn_health_checks=True)}
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    DATABASES["default"]["OPTIONS"] = {
        # A transaction that reads first and writes later fails at once when another writes in between, so each takes
        # the write lock at its beginning. FULL: what was answered with 2xx survives a power cut too.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
    }
else:
    # A server that vanished without a word is noticed within half a minute, not after TCP's quarter of an hour.
    patience = {"connect_timeout": 5, "keepalives_idle": 15, "keepalives_interval": 5, "tcp_user_timeout": 30_000}
    DATABASES["default"]["OPTIONS"] = patience | DATABASES["default"].get("OPTIONS", {})

# --- Who may do what --------------------------------------------------------------------------------------------------

SSO = environ.single_sign_on(LOCAL_MODE, PUBLIC_URL)
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "ticketing.access.RolesAtOnce"]
if SSO:
    AUTHENTICATION_BACKENDS.append("ticketing.signin.ByProvider")
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 8}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "admin:login"
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]  # an attacker elsewhere cannot lock the real user out
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_CALLABLE = "ticketing.errors.locked_out"
AXES_VERBOSE = False
AXES_ENABLE_ACCESS_FAILURE_LOG = False
AXES_DISABLE_ACCESS_LOG = True

BEHIND_TLS = PUBLIC_URL.startswith("https://")
SECURE_HSTS_SECONDS = 365 * 24 * 3600 if BEHIND_TLS else 0
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # whether the whole domain is for TLS alone, and preloaded as such,
    "security.W021",  # is its owner's decision
    "security.W008",  # TLS ends at the proxy, and the API never redirects
]
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = BEHIND_TLS
SESSION_COOKIE_NAME = "__Host-session" if BEHIND_TLS else f"session_{PORT}"
CSRF_COOKIE_NAME = "__Host-csrf" if BEHIND_TLS else f"csrf_{PORT}"
SESSION_ENGINE = "ticketing.sessions"
SESSION_HOURS = environ.whole("SESSION_HOURS", 1, 24 * 30)
SESSION_IDLE_MINUTES = environ.whole("SESSION_IDLE_MINUTES", 1, 60 * 24 * 30)
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL] if BEHIND_TLS else []
CSRF_FAILURE_VIEW = "ticketing.errors.csrf_failure"
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# --- REST -------------------------------------------------------------------------------------------------------------

REQUEST_BODY_LIMIT = 10 * 1024 * 1024
DATA_UPLOAD_MAX_MEMORY_SIZE = REQUEST_BODY_LIMIT
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "ticketing.access.ApiKeyAuthentication",
        "ticketing.access.ConsoleAuthentication",
        "ticketing.access.LocalAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["ticketing.access.RoleRequired"],
    "DEFAULT_PARSER_CLASSES": ["ticketing.wire.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["ticketing.wire.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "ticketing.wire.JSONNegotiation",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "ticketing.errors.exception_handler",
    "UNAUTHENTICATED_USER": "ticketing.access.nobody",
}

# --- Static files -----------------------------------------------------------------------------------------------------

STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # straight from the packages: there is nothing to collect
WHITENOISE_AUTOREFRESH = False

# --- Celery: a wake-up, never the memory ------------------------------------------------------------------------------

CELERY_BROKER_URL = BROKER_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = "tickets"
CELERY_TASK_ROUTES = {"causes.*": {"queue": "causes"}}
CELERY_WORKER_PREFETCH_MULTIPLIER = 4
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_CONNECTION_TIMEOUT = 2
CELERY_BROKER_TRANSPORT_OPTIONS = (
    {"socket_timeout": 5, "socket_connect_timeout": 2, "visibility_timeout": 60} if "redis" in BROKER_URL else {}
)
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULE = {
    "beat": {"task": "tickets.beat", "schedule": 15.0, "options": {"expires": 30}},
    # A model that hangs is known for it within a minute, after the check's own deadline.
    "check-model": {"task": "causes.check_model", "schedule": 50.0, "options": {"expires": 50}},
    "drill": {"task": "tickets.drill", "schedule": 300.0, "options": {"expires": 300}},
    "prune": {"task": "tickets.prune", "schedule": 3600.0, "options": {"expires": 3600}},
}
CELERY_BEAT_SCHEDULER = "ticketing.beat:Scheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 15
CELERY_BEAT_SYNC_EVERY = 1  # its file tells `manage.py alive beat` that it works

# --- The product ------------------------------------------------------------------------------------------------------

RUNBOOK_URL_TEMPLATE = environ.url_template("RUNBOOK_URL_TEMPLATE", {"service", "severity", "id"})
TRACE_URL_TEMPLATE = environ.url_template("TRACE_URL_TEMPLATE", {"trace_id", "service"})
ANOMALIES_KEPT_DAYS = environ.read("ANOMALIES_KEPT_DAYS")
EVENT_IDS_KEPT_DAYS = environ.read("EVENT_IDS_KEPT_DAYS")
DRILL_SCHEDULE_HOURS = environ.read("DRILL_SCHEDULE_HOURS")

SPECTACULAR_SETTINGS = {
    "TITLE": "Ticketing Agent",
    "DESCRIPTION": "Turns anomalies into one incident and one ticket per platform.",
    "VERSION": "1.0.0",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["ticketing.access.RoleRequired"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "COMPONENT_SPLIT_PATCH": False,
    "PREPROCESSING_HOOKS": ["ticketing.docs.without_aliases"],
    # Not spectacular's own hook: enumerations stay where they are used.
    "POSTPROCESSING_HOOKS": ["ticketing.docs.with_common_errors"],
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"request": {"()": "ticketing.logs.RequestFilter"}},
    "formatters": {"line": {"()": f"ticketing.logs.{'Json' if LOG_FORMAT == 'json' else 'Text'}Formatter"}},
    "handlers": {"stream": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["request"]}},
    "root": {"handlers": ["stream"], "level": LOG_LEVEL},
    "loggers": {
        "django.request": {"level": "CRITICAL"},
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        "celery": {"level": "WARNING"},
        "kombu": {"level": "WARNING"},
        "amqp": {"level": "WARNING"},
        "axes": {"level": "WARNING"},
        "waitress.queue": {"level": "ERROR"},
    },
}

"""What goes wrong in the shop of the demo: what its detectors send, and what a model would say of it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """One way to fail, as a detector tells of it."""

    service: str
    severity: str
    score: float
    title: str
    category: str
    lines: tuple[str, ...]
    affected: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()  # the root first
    cause: str = ""  # the model's answer
    look_first: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)

    def anomaly(self, event_id: str, at: str) -> dict:
        """The event, in the words that producers use."""
        return {
            "event_id": event_id,
            "detected_at": at,
            "title": self.title,
            "service": self.service,
            "severity": self.severity,
            "anomaly_score": self.score,
            "anomaly_type": "error_rate_spike",
            "environment": "production",
            "affected_services": [self.service, *self.affected],
            "error_category": self.category,
            "error_template": self.lines[0].lower(),
            "causal_chain": list(self.chain),
            "root_cause_service": self.chain[0] if self.chain else "",
            "signal_weights": self.weights or {"severity": 0.9, f"pattern:{self.category}": 0.8},
            "detection_mode": "windowed",
            "evidence_logs": [
                {"@timestamp": at, "service": self.service, "level": "ERROR", "message": line} for line in self.lines
            ],
        }


FAULTS = (
    Fault(
        "payment-api",
        "critical",
        4.2,
        "High error rate on payment-api",
        "database_pool",
        (
            "HikariPool-1 - Connection is not available, request timed out after 30000ms",
            "POST /v1/charges 503 in 30012 ms",
        ),
        ("order-engine", "notification-svc"),
        ("payment-db", "payment-api", "order-engine"),
        "payment-api waits for database connections that nobody gives back: its pool is exhausted.",
        ("connections held by long transactions in payment-db", "the deployment of payment-api at the time"),
    ),
    Fault(
        "checkout-web",
        "critical",
        3.6,
        "Checkout fails for one in three customers",
        "timeout",
        ("upstream timed out (110: Connection timed out) while reading response header from upstream",),
        ("cart-service",),
        ("cart-service", "checkout-web"),
        "cart-service answers too late, and checkout-web gives up on it.",
        ("latency of cart-service", "its cache's hit rate"),
    ),
    Fault(
        "search-indexer",
        "high",
        2.1,
        "search-indexer runs out of memory",
        "out_of_memory",
        ("java.lang.OutOfMemoryError: Java heap space", "Terminating due to java.lang.OutOfMemoryError"),
        ("search-api",),
        (),
        "search-indexer needs more heap than it has while it builds the large segment.",
        ("heap use before the failure", "the size of the latest catalogue import"),
    ),
    Fault(
        "order-engine",
        "high",
        2.7,
        "Orders wait for a lock",
        "database",
        ("ERROR: deadlock detected; Process 4711 waits for ShareLock on transaction 99121",),
        ("warehouse-sync",),
        ("orders-db", "order-engine"),
        "Two jobs of order-engine take the same rows in different order and deadlock.",
        ("the two statements in the database's log", "what changed in the nightly job"),
    ),
    Fault(
        "login-gateway",
        "high",
        1.9,
        "Sign-ins refused after the certificate was rotated",
        "tls",
        ("x509: certificate has expired or is not yet valid: current time is after the end date",),
        ("customer-portal",),
        ("identity-provider", "login-gateway"),
        "login-gateway still trusts the identity provider's old certificate, which has expired.",
        ("the dates of the certificate chain", "when the bundle was last deployed"),
    ),
    Fault(
        "shipping-quotes",
        "medium",
        1.4,
        "The carrier's API limits us",
        "rate_limit",
        ("carrier API returned 429 Too Many Requests, retry in 60 s",),
        (),
        ("carrier-api", "shipping-quotes"),
        "shipping-quotes asks the carrier more often than its quota allows, most of it retries.",
        ("calls a minute to the carrier", "the retry policy"),
    ),
    Fault(
        "image-resizer",
        "medium",
        1.2,
        "image-resizer cannot write its results",
        "disk",
        ("write /var/cache/img/9f2c.webp: no space left on device",),
        (),
        (),
        "The cache volume of image-resizer is full.",
        ("what grew last on the volume", "whether old results are still removed"),
    ),
    Fault(
        "mail-sender",
        "low",
        0.95,
        "Mails are queued longer than usual",
        "connection",
        ("dial tcp 10.2.4.17:587: connect: connection refused",),
        (),
        ("mail-relay", "mail-sender"),
        "The mail relay refuses connections from mail-sender.",
        ("whether the relay runs", "the firewall's latest change"),
    ),
    Fault(
        "recommendations",
        "low",
        0.9,
        "recommendations answers from its stale copy",
        "dependency",
        ("feature store returned 502 Bad Gateway, serving stale model",),
        (),
        ("feature-store", "recommendations"),
        "The feature store fails, and recommendations serves what it last knew.",
        ("the feature store's own incidents",),
    ),
)

"""The kinds of fault that the rules tell apart: which words give them away, what they mean and where to look."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault."""

    category: str
    called: str  # completes "points to …"
    means: str
    check: str  # what to look at first
    words: re.Pattern | None = None  # how log lines and templates give it away
    aliases: tuple[str, ...] = ()  # what producers call it: categories, anomaly types, names of pattern signals
    names: re.Pattern | None = None  # what in such a line is worth naming: its first group


def _words(*alternatives: str) -> re.Pattern:
    return re.compile("|".join(alternatives), re.IGNORECASE)


# Order matters: a line is of the first kind whose words it holds, so the telling words come before the general ones
# ("connection pool exhausted: lock timeout" is the pool; "no route to host … socket timeout" is the connection).
FAULTS: tuple[Fault, ...] = (
    Fault(
        "disk",
        "a full or failing disk",
        "writes fail because storage is full, read-only or faulty",
        "free space and inodes on its volumes, what grew last, and the kernel log for I/O errors",
        _words(
            r"no space left|disk (?:is )?full|\bENOSPC\b|disk quota|read-only file ?system|\bEIO\b|\bi/o error",
            r"could not extend file",
        ),
        ("disk", "disk_full", "disk_space", "storage", "disk_exhaustion"),
    ),
    Fault(
        "database_pool",
        "an exhausted database connection pool",
        "requests wait for a database connection that nobody gives back in time",
        "pool size against connections in use, queries that run long, and connections that are never closed",
        _words(
            r"pool (?:is |was )?(?:exhausted|full|timed? ?out)|too many (?:clients|connections)",
            r"QueuePool limit|remaining connection slots|HikariPool[^\n]{0,60}not available",
            r"(?:unable to|could not|cannot) (?:acquire|obtain|get) [^\n]{0,30}\bconnection",
        ),
        ("database_pool", "connection_pool", "pool_exhausted", "pool"),
    ),
    Fault(
        "database",
        "a database that refuses or holds up queries",
        "locks, deadlocks or a database that cannot serve",
        "locks and the longest transactions in the database, failover or read-only state, and the latest migration",
        _words(
            r"deadlock|lock (?:wait )?timeout|could not serialize|read-only transaction|database is locked",
            r"\bSQLSTATE\b|\bORA-\d{4,5}\b",
        ),
        ("database", "db", "database_error", "deadlock"),
    ),
    Fault(
        "resource_accounting",
        "a resource report rather than a fault",
        "the line states how much is left to hand out, and nothing in it failed",
        "whether anything was refused at that time; if not, the detector took a report for a fault",
        _words(r"(?:memory|vcpu|disk) limit: \S{1,40} \S{0,10},? ?free:", r"\bclaim successful"),
    ),
    Fault(
        "resource_exhaustion",
        "a lack of capacity",
        "a scheduler, queue or limit had nothing left to hand out, so that work waits or is refused",
        "capacity and limits where it runs (queue, cluster, quotas, open files, threads), and who else takes from them",
        _words(
            r"headroom=<memory:|resources? (?:is |are |was )?exhausted|\bRESOURCE_EXHAUSTED\b",
            r"too many open files|\bEMFILE\b|unable to create (?:new )?native thread",
            r"insufficient (?:cpu|memory|resources|capacity)|no (?:resources|capacity|valid host)",
            r"(?:thread pool|queue|buffer) (?:is )?(?:exhausted|full)",
        ),
        ("resource_exhaustion", "resource", "capacity", "cpu"),
    ),
    Fault(
        "out_of_memory",
        "running out of memory",
        "a process needed more memory than it may have, and was refused or killed",
        "memory use up to the failure, restarts and kill messages, the limit, and what was deployed just before",
        _words(
            r"out ?of ?memory|\boom\b|\boom[-_ ]?kill|java heap space|gc overhead limit|\bmetaspace\b",
            r"cannot allocate memory|\bENOMEM\b|memory allocation (?:of [^\n]{0,30})?failed",
            r"(?:exceeded|beyond) [^\n]{0,40}memory|memory (?:limit )?exceeded",
        ),
        ("out_of_memory", "memory_exhaustion", "oom", "memory"),
    ),
    Fault(
        "tls",
        "a TLS or certificate failure",
        "two sides could not agree on a secure connection, most often over a certificate",
        "the certificate's dates, names and chain on both sides, and what was renewed or rotated lately",
        _words(
            r"certificate[^\n]{0,40}(?:expired|invalid|not valid|verif|unknown|trusted|mismatch|revoked|fail)",
            r"(?:invalid|expired|untrusted|bad|unknown|self[- ]signed|verify)[^\n]{0,20}certificate|\bx509\b",
            r"\bPKIX\b|\b(?:ssl|tls)(?:v?1(?:\.\d)?)?\b[^\n]{0,40}(?:error|fail|alert)",
            r"SSL(?:Handshake|Error|Exception)|handshake (?:failed|failure|error|timed? ?out)",
        ),
        ("tls", "tls_error", "ssl", "ssl_error", "certificate"),
    ),
    Fault(
        "rate_limit",
        "a rate limit",
        "calls were refused because too many were made or a quota is used up",
        "the quota and the call rate towards the one that refuses, retries that add to it, and what raised the traffic",
        _words(
            r"rate.?limit|too many requests|throttl(?:ed|ing)|quota (?:was |is )?exceeded",
            r"(?:status|code|http|returned|response)\W{0,3}429\b",
        ),
        ("rate_limit", "rate_limiting", "rate_limited", "throttling", "quota"),
    ),
    Fault(
        "authentication",
        "failed authentication",
        "somebody or something presents credentials that are not accepted",
        "who is calling and from where, credentials that expired or were rotated, and, from outside, an attack",
        _words(
            r"authentication (?:fail|error)|auth(?:entication)? (?:failed|failure|denied)|failed password",
            r"invalid (?:credentials?|password|user|token|api[ _]?key|signature)",
            r"log-?in (?:failed|failure|incorrect)|unauthori[sz]ed|unauthenticated",
            r"(?:token|jwt|session) (?:has |is )?expired|(?:status|code|http|returned|response)\W{0,3}401\b",
        ),
        ("authentication", "auth_failure", "auth", "authentication_failure"),
        re.compile(r"\brhost=([^\s;]{1,80})"),
    ),
    Fault(
        "access_denied",
        "a refused access",
        "the caller is known or welcome, but a rule forbids what it asked for",
        "the rule or role that refuses, what changed in it, and whether the request should be made at all",
        _words(
            r"forbidden|access (?:is |was )?denied|permission denied|not (?:authorized|permitted|allowed) to",
            r"insufficient (?:privileges?|permissions?|scope)|\bEACCES\b",
            r"(?:status|code|http|returned|response)\W{0,3}403\b",
        ),
        ("access_denied", "authorization", "permission", "forbidden"),
        re.compile(r"\bclient ([0-9A-Fa-f.:]{3,45})\]"),
    ),
    Fault(
        "dns",
        "a name that does not resolve",
        "the address of another service could not be looked up",
        "the name as it is written in the settings, the resolver, and recent changes of service discovery",
        _words(
            r"unknown ?host|name or service not known|\bgetaddrinfo\b|\bNXDOMAIN\b|\bENOTFOUND\b|no such host",
            r"name resolution|could not resolve",
        ),
        ("dns", "dns_failure", "name_resolution"),
    ),
    Fault(
        "connection",
        "a broken connection",
        "another service could not be reached, or hung up",
        "whether the other side is up and listens, the network between them (routes, firewall), and its restarts",
        _words(
            r"connection (?:was |is )?(?:refused|reset|closed|aborted|lost|failed|failure|error)",
            r"no ?route ?to ?host|(?:network|host|server|node)(?: is)? unreachable|broken pipe",
            r"\bECONN(?:REFUSED|RESET|ABORTED)\b|error in contacting|(?:failed|unable) to connect",
            r"could not connect|socket (?:closed|hang ?up)",
        ),
        ("connection", "connection_failure", "network", "connection_error", "connectivity"),
        re.compile(r"\bto ([A-Za-z0-9][A-Za-z0-9_.-]{0,60}:[0-9]{1,5})\b"),
    ),
    Fault(
        "timeout",
        "a timeout",
        "an answer did not come in the time allowed",
        "the latency of what it waits for, its load and its queues, and whether time limits and retries fit together",
        _words(
            r"time[ds]?[ -]?out|deadline (?:was )?exceeded|\bETIMEDOUT\b|took too long",
            r"(?:status|code|http|returned|response)\W{0,3}504\b",
        ),
        ("timeout", "latency", "deadline"),
    ),
    Fault(
        "crash",
        "a crash",
        "a process ended or was ended",
        "its exit code and the last lines before the end, who killed it, its restarts, and the latest deployment",
        _words(
            r"seg(?:mentation )?fault|\bSIG(?:SEGV|KILL|ABRT|BUS)\b|\bpanic\b|core dumped|stack ?overflow",
            r"\b(?:was |been )?killed by\b|exit(?:ed)? (?:with )?(?:code|status) [1-9]|crash|fatal error",
            r"uncaught|unhandled (?:exception|error|rejection)",
        ),
        ("crash", "process_crash", "panic"),
    ),
    Fault(
        "dependency",
        "a failing dependency",
        "something it depends on answers with errors or is out of service",
        "the health, errors and latest deployment of the service behind it, before anything here",
        _words(
            r"bad gateway|service unavailable|internal server error|gateway time|\bupstream\b|circuit ?breaker",
            r"in error state|(?:status|code|http|returned|response)\W{0,3}50\d\b",
        ),
        ("dependency", "dependency_failure", "upstream", "server_error", "http_5xx", "service_unavailable", "5xx"),
    ),
    Fault(
        "application",
        "an error in the program",
        "code met a value or a state that it does not handle",
        "the stack trace, what was deployed last, and the input that sets it off",
        _words(
            r"null ?pointer|\b(?:Type|Key|Value|Attribute|Index|Assertion|Reference|Syntax)Error\b",
            r"\bnil pointer",
            r"(?:IllegalState|IllegalArgument|ClassCast|OutOfBounds|NumberFormat)\w{0,20}Exception",
            r"division by zero",
        ),
        ("application", "application_error", "exception", "code", "bug"),
    ),
)

UNKNOWN = Fault(
    "unknown",
    "a fault of a kind the evidence does not tell",
    "neither the category nor the log's words say what failed",
    "the service's log around that time, what was deployed or changed last, and the health of what it depends on",
)

NAMED = {alias: fault for fault in FAULTS for alias in fault.aliases}

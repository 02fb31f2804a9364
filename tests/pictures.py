"""Takes the documentation's pictures of the console from the demo's data: `make pictures`.

    python -m tests.pictures [FOLDER]      docs/pictures, unless told otherwise

The demo runs in a data directory of its own on a free port and is gone afterwards.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from ticketing.processes import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--font-render-hinting=none"]
WIDTH = 1440
TALLEST = 1100
PATIENCE_SECONDS = 180
LIST = "/admin/incidents/incident/"
NOT_OURS = ("DATABASE_URL", "BROKER_URL", "PUBLIC_URL", "SECRET_KEY", "ENCRYPTION_KEYS", "ALLOWED_HOSTS", "HOST")
READY = re.compile(r"The demo is ready: (\S+)/admin/ · user (\S+) · password (\S+)")


def main(folder: Path) -> None:
    if CHROMIUM is None:
        sys.exit("The pictures need Chromium: apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with demo() as (url, user, password), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        incident = telling(url)
        ask(url, "/api/v1/llm-status")  # so that the overview says how the model is
        for scheme in ("light", "dark"):
            page = signed_in(browser, scheme, url, user, password)
            take(page, f"{url}{LIST}", folder / f"list-{scheme}.png", "#content")
            take(page, f"{url}{LIST}{incident}/", folder / f"incident-{scheme}.png", "#anomalies figure")
            if scheme == "light":
                take(page, f"{url}/admin/", folder / "overview-light.png", "#content")
        browser.close()


@contextmanager
def demo() -> Iterator[tuple[str, str, str]]:
    """The running demo's address, user and password, once all its tickets are delivered."""
    with socket.create_server(("127.0.0.1", 0)) as free, tempfile.TemporaryDirectory() as folder:
        port = free.getsockname()[1]
        free.close()
        environment = {name: value for name, value in os.environ.items() if name not in NOT_OURS} | {
            "LOCAL_MODE": "1",
            "DATA_DIR": str(Path(folder) / "demo"),
            "PORT": str(port),
            "EGRESS_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        command = [sys.executable, "manage.py", "up", "--demo"]
        running = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)
        given_up = threading.Timer(PATIENCE_SECONDS, running.terminate)
        given_up.start()
        try:
            told = next(filter(None, map(READY.search, running.stdout)), None)
            if told is None:
                sys.exit("The demo did not get ready.")
            yield told.groups()
        finally:
            given_up.cancel()
            running.terminate()
            running.communicate(timeout=30)


def telling(url: str) -> str:
    """The incident that shows most: somebody works on a storm, a model explained it, and all of its tickets stand."""

    def worth(incident: dict) -> tuple:
        return (not incident["fallback"], incident["status"] == "acknowledged", incident["anomalyCount"])

    return max(ask(url, "/api/incidents?severity=critical&limit=40"), key=worth)["id"]


def ask(url: str, path: str):
    with urllib.request.urlopen(url + path, timeout=10) as answer:
        return json.load(answer)


def signed_in(browser: Browser, scheme: str, url: str, user: str, password: str) -> Page:
    context = browser.new_context(color_scheme=scheme, viewport={"width": WIDTH, "height": 1000})
    page = context.new_page()
    page.goto(f"{url}/admin/login/")
    page.fill("#id_username", user)
    page.fill("#id_password", password)
    page.click("text=Log in")
    page.wait_for_url(f"**{LIST}")
    return page


def take(page: Page, address: str, file: Path, last: str) -> None:
    """The page from its top to the end of `last`: what lies further down tells nothing more."""
    page.goto(address, wait_until="networkidle")
    ends = page.evaluate("last => document.querySelector(last).getBoundingClientRect().bottom", last)
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(TALLEST, int(ends) + 8)}
    page.screenshot(path=file, clip=clip, full_page=True, animations="disabled")
    print(f"{file} {file.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures")

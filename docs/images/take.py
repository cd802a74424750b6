"""Take the pictures of Ray's dashboard that lie beside this file, from a run that goes on.

    pip install playwright; apt-get install chromium      (for this script only)
    python docs/images/take.py rayrlhf ppo run.name=pictures policy_model=runs/demo-short/sft ...

starts that command with a Ray of its own, waits until it says ` 3/` (its third step), takes the pictures and ends it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "token")  # as a job's own Ray has it

from playwright.sync_api import Page, sync_playwright  # noqa: E402
from ray.dashboard.utils import get_address_for_submission_client  # noqa: E402
from ray.util import get_node_ip_address  # noqa: E402

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1400, 820
TOKEN = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
# file -> page, and the section of it that is opened and shown
PAGES = {
    "actors": ("actors", ""),
    "placement": ("jobs/{job}", "Placement Group Table"),
    "tasks": ("jobs/{job}", "Task Table"),
}


def main(command: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        process = subprocess.Popen(command, env=os.environ | {"RAY_TMPDIR": folder}, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if " 3/" in line:
                    break
            else:
                print(f"error: the run ended before its third step, with {process.wait()}", file=sys.stderr)
                return 1
            [port] = (Path(folder) / "ray" / "session_latest").glob("gcs_server_port_*")
            take(get_address_for_submission_client(f"{get_node_ip_address()}:{port.read_text().strip()}"))
        finally:
            process.terminate()
            process.wait(60)
    return 0


def take(url: str) -> None:
    """All pages of the dashboard at `url`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        # what /api/authenticate would answer with, once the token has been typed in
        context.add_cookies([{"name": "ray-authentication-token", "value": TOKEN.read_text().strip(), "url": url}])
        page = context.new_page()
        for name, (path, section) in PAGES.items():
            page.goto(f"{url}/#/{path.format(job=_job(page, url))}")
            time.sleep(6)
            if section:
                heading = page.get_by_text(section, exact=True).first
                heading.click()
                time.sleep(4)
                heading.evaluate("element => element.scrollIntoView()")
            page.screenshot(path=HERE / f"{name}.png")
            print(f"{HERE / name}.png: {(HERE / f'{name}.png').stat().st_size:,} bytes")
        browser.close()


def _job(page: Page, url: str) -> str:
    """The id of the driver's job."""
    return str(page.request.get(f"{url}/api/jobs/").json()[-1]["job_id"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A Prometheus for tests: found, or fetched as Debian's package; started, asked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rayrlhf.data.fetch import cache_dir

VARIABLE = "PROMETHEUS"  # an executable to take


def executable() -> str:
    """That of `VARIABLE` or PATH, else Debian's, fetched once into the project's cache without being installed."""
    cached = cache_dir() / "prometheus"
    program = os.environ.get(VARIABLE) or shutil.which("prometheus")
    if program or (cached / "usr" / "bin" / "prometheus").is_file():
        return program or str(cached / "usr" / "bin" / "prometheus")
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise FileNotFoundError(f"no prometheus: install it, or set {VARIABLE} to its executable")
    with tempfile.TemporaryDirectory(prefix="rayrlhf-fetch-") as folder:
        for arguments in (["download", "prometheus"], ["update"], ["download", "prometheus"]):
            done = subprocess.run(
                ["apt-get", "-q", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
            )
            if packages := list(Path(folder).glob("*.deb")):
                break
        else:
            raise FileNotFoundError(f"no prometheus, and apt-get cannot download it:\n{done.stderr[-500:]}")
        part = cached.with_name(f"prometheus.part{os.getpid()}")
        part.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg", "-x", str(packages[0]), str(part)], check=True, timeout=120)
    part.rename(cached)
    return str(cached / "usr" / "bin" / "prometheus")


class Prometheus:
    """One that runs."""

    def __init__(self, address: str) -> None:
        self.address, self.began = address, time.time()

    def series(self, query: str) -> list[dict[str, Any]]:
        """What a Grafana panel with this query draws from the start until now, a point a second."""
        span = {"start": self.began, "end": time.time(), "step": 1}
        return list(self.ask("query_range", query=query, **span)["data"]["result"])

    def ask(self, what: str, **parameters: Any) -> dict[str, Any]:
        """A call of its HTTP interface."""
        with urllib.request.urlopen(f"{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}") as answer:
            found: dict[str, Any] = json.load(answer)
        assert found["status"] == "success", found
        return found


@contextmanager
def scraping(discovery: Path, folder: Path) -> Iterator[Prometheus]:
    """One that scrapes every second what Ray's file `discovery` lists, with its data in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listens = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        f"- {{job_name: ray, file_sd_configs: [{{files: ['{discovery}'], refresh_interval: 1s}}]}}\n"
    )
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            [executable(), *options, f"--web.listen-address={listens}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        for _ in range(100):
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            try:
                urllib.request.urlopen(f"http://{listens}/-/ready").close()
                break
            except OSError:
                time.sleep(0.1)
        yield Prometheus(f"http://{listens}")
    finally:
        process.terminate()
        process.wait(20)

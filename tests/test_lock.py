"""The lock and its hashes name the same versions; both are what the README's commands install."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_of_the_lock_but_torch_has_hashes():
    lock = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements-cpu.lock").read_text(), re.MULTILINE))
    text = (ROOT / "requirements-cpu.hashes").read_text()
    found = re.findall(r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    hashed = {re.sub(r"[._-]+", "-", name).lower(): version for name, version, _ in found}
    assert text.count("==") == len(found), "a package without hashes"
    assert hashed == {re.sub(r"[._-]+", "-", n).lower(): v for n, v in lock.items() if n != "torch"}, "run .ci/hashes"


def test_what_installs_the_lock_asks_for_the_hashes_first():
    for path in ("Makefile", "cluster/docker/Dockerfile.cpu"):
        text = (ROOT / path).read_text()
        asked = text.index("--require-hashes -r requirements-cpu.hashes")
        assert asked < text.index("-r requirements-cpu.lock"), path

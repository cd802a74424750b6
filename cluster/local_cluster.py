"""A Ray cluster on this machine that outlives the command: one `ray start --block` for each of its nodes.

    start: token -> ports -> head (a process of its own) -> further nodes -> wait until all of them take work
    stop:  SIGTERM to those processes, which take down what they started; then whatever of it still lives

`ray stop` would end every Ray on the machine; here only the processes that a file in the cache names are ended.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rayrlhf.data.fetch import cache_dir
from rayrlhf.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    import psutil

RAY = (sys.executable, "-m", "ray.scripts.scripts")  # the `ray` of this environment, whatever PATH says
# Ray puts sockets under it, whose paths may have 107 characters: node, session, `sockets` and their names take 70
WORKER_PORTS = range(10002, 20000)  # the defaults of `ray start`
TEMP_DIR_LENGTH = 36
_STOP_S = 20.0  # for Ray to end by itself
_MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """What a cluster is started with; ports of the head, and resources that each node announces."""

    port: int = 6379
    dashboard_port: int = 8265
    metrics_port: int = 8080
    nodes: int = 1
    cpus: int = 4
    memory_mib: int = 4096
    object_store_mib: int = 512
    temp_dir: str = ""


@dataclass(frozen=True)
class Node:
    """One `ray start --block`: its process, and where it can be looked at."""

    pid: int
    started: float  # seconds since the epoch: tells the process from a later one of the same number
    agent_port: int
    metrics_port: int


@dataclass(frozen=True)
class LocalCluster:
    """What was started; the head is the first node."""

    settings: Settings
    ip: str
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What other nodes and drivers join, RAY_ADDRESS."""
        return f"{self.ip}:{self.settings.port}"

    @property
    def dashboard(self) -> str:
        """What jobs are submitted to."""
        return f"http://127.0.0.1:{self.settings.dashboard_port}"

    @property
    def logs(self) -> Path:
        return Path(self.settings.temp_dir)

    def is_up(self) -> bool:
        """Whether the head's process lives."""
        return bool(self.nodes) and _process(self.nodes[0]) is not None


def default_temp_dir() -> str:
    return str(Path(tempfile.gettempdir(), f"rayrlhf-{getpass.getuser()}"))


def state_file() -> Path:
    """Where the cluster that this user has started is written down."""
    return cache_dir() / f"local_cluster-{socket.gethostname()}.json"  # a home directory may be several machines'


def read() -> LocalCluster | None:
    """The cluster that was started, up or not; None where there is none."""
    path = state_file()
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        nodes = [Node(**node) for node in content["nodes"]]
        return LocalCluster(Settings(**content["settings"]), content["ip"], nodes)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} does not say which cluster was started ({error!r}): look for `ray start` among this machine's "
            "processes, end it, and delete the file"
        ) from error


def start(settings: Settings, deadline_s: float, say: Callable[[str], None] = print) -> LocalCluster:
    """Starts the nodes and waits until each takes work.

    Raises ConfigError for what cannot be started, ResourceError for a node that ends or is not there by
    `deadline_s`; what was started is then stopped again.
    """
    check(settings)
    if subprocess.run([*RAY, "get-auth-token", "--generate"], capture_output=True, umask=0o077).returncode:
        raise ConfigError("`ray get-auth-token --generate` fails: run it, it says why there is no token")
    cluster = LocalCluster(settings, ip=_own_ip())
    deadline = time.monotonic() + deadline_s
    try:
        for number in range(settings.nodes):
            node = _start_node(cluster, number)
            cluster.nodes.append(node)
            _write(cluster)
            _wait(node, _log(settings, number), deadline, deadline_s, say)
    except BaseException:
        stop(cluster)
        raise
    return cluster


def check(settings: Settings) -> None:
    """Raises ConfigError for what could not be started; touches nothing but the temporary folder."""
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise ConfigError(
            f"RAY_AUTH_MODE={mode}: Ray's Jobs API runs any code it is sent. Unset it, or set it to token"
        )
    ports = {
        "--port": settings.port,
        "--dashboard-port": settings.dashboard_port,
        "--metrics-port": settings.metrics_port,
    }
    if len(set(ports.values())) < len(ports):
        raise ConfigError(f"each port needs a number of its own: {', '.join(f'{k}={v}' for k, v in ports.items())}")
    for option, port in ports.items():
        if port in WORKER_PORTS:
            raise ConfigError(
                f"{option}={port} is among those that Ray gives its workers, {WORKER_PORTS[0]} to {WORKER_PORTS[-1]}: "
                "set another"
            )
        if not is_free(port):
            raise ConfigError(f"port {port} is taken, by another Ray perhaps: set {option} to a free one")
    folder = Path(settings.temp_dir)
    if len(settings.temp_dir) > TEMP_DIR_LENGTH or not folder.is_absolute():
        raise ConfigError(
            f"--temp-dir={folder}: give an absolute path of at most {TEMP_DIR_LENGTH} characters; Ray's sockets lie "
            "under it, and their paths may have 107"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--temp-dir={folder} cannot be made: {error.strerror}") from error
    if folder.stat().st_uid != os.getuid():
        raise ConfigError(f"--temp-dir={folder} is another user's: set it to a folder of your own")


def stop(cluster: LocalCluster) -> int:
    """Ends the cluster's processes, workers first, and forgets it; returns how many processes were there."""
    import psutil

    ended = 0
    for node in reversed(cluster.nodes):
        process = _process(node)
        if process is None:
            continue
        family = [process]
        with suppress(psutil.NoSuchProcess):  # it may end by itself at any moment
            family = [process, *process.children(recursive=True)]
            process.terminate()
        _, left = psutil.wait_procs(family, timeout=_STOP_S)
        for survivor in left:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()
        psutil.wait_procs(left, timeout=_STOP_S)
        ended += len(family)
    state_file().unlink(missing_ok=True)
    return ended


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _start_node(cluster: LocalCluster, number: int) -> Node:
    import psutil

    settings, head = cluster.settings, number == 0
    agent_port, metrics_port = _free_port(), settings.metrics_port if head else _free_port()
    options = [
        f"--dashboard-agent-listen-port={agent_port}",  # Ray's default one is any other Ray's of the machine too
        f"--metrics-export-port={metrics_port}",
        f"--num-cpus={settings.cpus}",
        f"--memory={settings.memory_mib * _MIB}",
        f"--object-store-memory={settings.object_store_mib * _MIB}",
        f"--temp-dir={settings.temp_dir}/{number}",  # in one folder a node would delete another's working directories
        f"--node-name={'head' if head else f'worker-{number}'}",
        "--disable-usage-stats",
    ]
    if head:
        options += ["--head", f"--port={settings.port}", f"--node-ip-address={cluster.ip}"]
        options += ["--dashboard-host=127.0.0.1", f"--dashboard-port={settings.dashboard_port}"]
        # nothing here uses it, and its default port is any other Ray's of the machine too
        options.append(f"--ray-client-server-port={_free_port()}")
    else:
        options += [f"--address={cluster.address}", "--num-gpus=0"]  # the machine's GPUs are there once: the head's
    with _log(settings, number).open("w") as log:
        process = _spawn([*RAY, "start", "--block", *options], log)
    return Node(process.pid, since_boot(psutil.Process(process.pid)), agent_port, metrics_port)


def _spawn(command: list[str], log: IO[str]) -> subprocess.Popen[bytes]:
    """In a session of its own: the terminal's Ctrl-C is not for the cluster."""
    # jobs are started as `python ...`: this environment's
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "PATH": path}
    # a node that is to end would first wait until its actors have gone elsewhere
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


def _wait(node: Node, log: Path, deadline: float, deadline_s: float, say: Callable[[str], None]) -> None:
    """Until the node's agent says that its raylet is well: from then on it takes jobs."""
    url = f"http://127.0.0.1:{node.agent_port}/api/local_raylet_healthz"
    told = False
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if _process(node) is None:
            raise ResourceError(f"`ray start` has ended, its last words in {log}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise ResourceError(f"the node is not up after {deadline_s:g} s; raise --timeout. In {log}:\n{_tail(log)}")
        if not told:
            say("waiting for Ray ...")
            told = True
        time.sleep(0.2)


def _write(cluster: LocalCluster) -> None:
    path = state_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(cluster), indent=1))


def _process(node: Node) -> psutil.Process | None:
    """The node's process where it lives: not another one that has got its number since."""
    import psutil

    try:
        process = psutil.Process(node.pid)
        same = abs(since_boot(process) - node.started) < 0.1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def since_boot(process: psutil.Process) -> float:
    """When it was started, in seconds since the machine was: the clock may be set meanwhile."""
    import psutil

    return process.create_time() - psutil.boot_time()


def _own_ip() -> str:
    """This machine's address as others see it; the loopback one where it has no other."""
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _log(settings: Settings, number: int) -> Path:
    return Path(settings.temp_dir, f"node-{number}.log")


def _tail(log: Path, lines: int = 8) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-lines:])

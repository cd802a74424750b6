"""Ray's own timeline (`ray timeline`) of a few seconds, as a trace beside those of torch's profiler."""

from __future__ import annotations

import gzip
import json
import logging
from typing import Any

import fsspec

from rayrlhf.profile_steps import TIMELINE

_TASK = "task::"  # before a call's name in an event's category
_TIMES = "recorded.json"
_LOGGER = "ray._private.state"  # warns at every call that its source will change


def write(folder: str, since: float, until: float) -> str:
    """Write what every process of the cluster did between these times (seconds since the epoch) to
    `folder/ray_timeline.json.gz`; returns its path.  Ray is connected; waits a second for late events."""
    import ray

    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        events = ray.timeline() or []
    finally:
        logger.setLevel(level)
    filesystem, where = fsspec.core.url_to_fs(folder)
    filesystem.makedirs(where, exist_ok=True)
    text = json.dumps(named(overlapping(events, since, until)))
    filesystem.pipe_file(f"{where}/{TIMELINE}", gzip.compress(text.encode()))
    return f"{folder}/{TIMELINE}"


def leave_times(folder: str, since: float, until: float) -> None:
    """Note in `folder` what `write_left` is to write, when calls that go on now have ended: Ray tells of no others."""
    filesystem, where = fsspec.core.url_to_fs(folder)
    filesystem.pipe_file(f"{where}/{_TIMES}", json.dumps({"since": since, "until": until}).encode())


def write_left(folder: str) -> None:
    """`write` for the times that `leave_times` has noted, if it has."""
    filesystem, where = fsspec.core.url_to_fs(folder)
    if filesystem.exists(f"{where}/{_TIMES}"):
        write(folder, **json.loads(filesystem.cat_file(f"{where}/{_TIMES}")))
        filesystem.rm_file(f"{where}/{_TIMES}")


def overlapping(events: list[dict[str, Any]], since: float, until: float) -> list[dict[str, Any]]:
    """The events that were going on between these times; an event has `ts` and `dur` in microseconds."""
    return [event for event in events if event["ts"] < until * 1e6 and event["ts"] + event["dur"] > since * 1e6]


def named(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls under the names that the actors gave them (`policy-0.update`), and a row of an actor's process under the
    actor's name; Ray's own are the method and the process's number."""
    calls = {id(event): event["cat"].removeprefix(_TASK) for event in events if event["cat"].startswith(_TASK)}
    rows = {event["tid"]: calls[id(event)].rpartition(".")[0] for event in events if id(event) in calls}
    return [
        event | {"name": calls.get(id(event), event["name"]), "tid": rows.get(event["tid"]) or event["tid"]}
        for event in events
    ]

"""The files of an engine's state: numbers as safetensors, the rest as JSON; nothing in them can run.

    state.json                                            step, names and shapes, how many ranks wrote
    shards_rank00000_of_00002_part000_of_001.safetensors  pieces of weights and of the optimizer's states
    rng_rank00000.safetensors                             random numbers of a rank: torch, CUDA, Python
    extra_part000_of_001.safetensors                      tensors of the caller

A piece is called `KIND/START/PARAMETER` and holds elements START, START + 1, ... of the parameter taken flat.
So every rank writes what it holds, and a rank of any other number of ranks reads the pieces that it needs.
"""

from __future__ import annotations

import glob
import json
import os
import random
import re
from collections.abc import Iterable
from functools import cache
from itertools import chain
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rayrlhf.errors import CheckpointError

MANIFEST = "state.json"
_FORMAT = 1
_PART_BYTES = 1 << 30  # safetensors copies a file's tensors before it writes them
_TENSOR = "__tensor__"
_PARTS = re.compile(r"_part(\d+)_of_(\d+)\.safetensors$")


def write_manifest(directory: str, manifest: dict[str, Any]) -> None:
    """`state.json`, with the version of the format."""
    with open(os.path.join(directory, MANIFEST), "w", encoding="utf-8") as file:
        json.dump({"format": _FORMAT} | manifest, file, indent=1)


def read_manifest(directory: str) -> dict[str, Any]:
    """What `write_manifest` was given.  Raises CheckpointError."""
    path = os.path.join(directory, MANIFEST)
    if not os.path.isfile(path):
        if os.path.isdir(os.path.join(directory, "engine")) or glob.glob(os.path.join(directory, "*.pt")):
            raise CheckpointError(
                f"{directory} was written by an older version of this project, as pickles, which are no longer read: "
                "it cannot be resumed. Its model/ can be used as any other; start the stage anew with another run.name"
            )
        raise CheckpointError(
            f"{path} is missing: {directory} holds no state of an engine, or not all of it was copied"
        )
    try:
        with open(path, encoding="utf-8") as file:
            manifest: dict[str, Any] = json.load(file)
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}): it is cut off, or no state of an engine") from error
    if version != _FORMAT:
        raise CheckpointError(
            f"{path} is of format {version}, this version reads {_FORMAT}: resume with the one that wrote it"
        )
    return manifest


def write_parts(directory: str, prefix: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """`tensors` as files of bounded size, each copied to the CPU only as its file is written; at least one file."""
    parts: list[dict[str, Tensor]] = [{}]
    room = _PART_BYTES
    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if parts[-1] and size > room:
            parts.append({})
            room = _PART_BYTES
        parts[-1][name] = tensor
        room -= size
    for number, part in enumerate(parts):
        path = os.path.join(directory, f"{prefix}_part{number:03d}_of_{len(parts):03d}.safetensors")
        # views of one flat tensor are refused, as safetensors could not tell whose memory it is
        save_file({name: tensor.detach().cpu().clone() for name, tensor in part.items()}, path)


def part_paths(directory: str, prefix: str) -> list[str]:
    """The files of `write_parts`.  Raises CheckpointError unless all are there."""
    there = sorted(glob.glob(os.path.join(glob.escape(directory), f"{prefix}_part*.safetensors")))
    totals = {int(match[2]) for path in there if (match := _PARTS.search(path))}
    total = max(totals, default=1)
    wanted = [os.path.join(directory, f"{prefix}_part{n:03d}_of_{total:03d}.safetensors") for n in range(total)]
    for path in wanted:
        if not os.path.isfile(path):
            raise CheckpointError(f"{path} is missing: not all files of the checkpoint were copied, or one was removed")
    return wanted


def opened(path: str) -> Any:
    """The file, of which only what is asked for is read.  Raises CheckpointError."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): it is missing or cut off, as by a full disk or a copy that was ended"
        ) from error


def shard_prefix(rank: int, num_writers: int) -> str:
    """What the files of a rank's pieces begin with."""
    return f"shards_rank{rank:05d}_of_{num_writers:05d}"


class Pieces:
    """The pieces that all ranks wrote, read as asked for."""

    def __init__(self, directory: str, num_writers: int) -> None:
        self.directory = directory
        paths = chain.from_iterable(part_paths(directory, shard_prefix(n, num_writers)) for n in range(num_writers))
        self._opened = cache(opened)
        self._places: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
        for path in paths:
            for key in self._opened(path).keys():  # noqa: SIM118 (a file, not a dict)
                kind, start, name = key.split("/", 2)
                self._places.setdefault((kind, name), []).append((int(start), path, key))

    def read(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """float32 `[length]`, elements from `start` on.  Raises CheckpointError where some are in no file."""
        out, filled, end = torch.empty(length), 0, start + length
        for at, path, key in self._places.get((kind, name), ()):
            piece = self._opened(path).get_slice(key)
            low, high = max(start, at), min(end, at + piece.get_shape()[0])
            if low < high:
                out[low - start : high - start] = piece[low - at : high - at]
                filled += high - low
        if filled != length:
            raise CheckpointError(
                f"{self.directory} holds {filled} of the {length} numbers of {name} ({kind}) that are needed here: "
                "files of two checkpoints are mixed there, or it is damaged"
            )
        return out


def write_rng(directory: str, rank: int, device: torch.device) -> None:
    """The states of this rank's generators."""
    tensors = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    save_file(tensors, _rng_path(directory, rank), metadata={"python": json.dumps(random.getstate())})


def read_rng(directory: str, rank: int, device: torch.device) -> None:
    """Restore the generators that `rank` wrote.  Raises CheckpointError."""
    file = opened(_rng_path(directory, rank))
    version, numbers, gauss = json.loads(file.metadata()["python"])
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(file.get_tensor("torch"))
    if device.type == "cuda" and "cuda" in file.keys():  # noqa: SIM118 (a file, not a dict)
        torch.cuda.set_rng_state(file.get_tensor("cuda"), device)


def _rng_path(directory: str, rank: int) -> str:
    return os.path.join(directory, f"rng_rank{rank:05d}.safetensors")


def write_extra(directory: str, extra: dict[str, Any]) -> Any:
    """Writes the tensors in `extra` (nested dictionaries); returns it as JSON can hold it."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {_TENSOR: path}
        if isinstance(value, dict):
            return {key: plain(item, f"{path}/{key}") for key, item in value.items()}
        return value

    found = plain(extra, "extra")
    write_parts(directory, "extra", tensors.items())
    return found


def read_extra(directory: str, found: Any, has_tensors: bool) -> Any:
    """`write_extra`'s extra again; its tensors are left out unless `has_tensors`.  Raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    for path in part_paths(directory, "extra") if has_tensors else ():
        file = opened(path)
        tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (a file, not a dict)

    def whole(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        is_kept = {key: has_tensors or not _is_tensor(item) for key, item in value.items()}
        return {key: whole(item) for key, item in value.items() if is_kept[key]}

    return whole(found)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {_TENSOR}

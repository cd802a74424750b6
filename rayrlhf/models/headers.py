"""What a Hugging Face folder's safetensors files hold, from their headers: no weight is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from rayrlhf.errors import ModelError


def tensor_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the folder's safetensors files, by name.

    Raises ModelError when there are none, or when a file is broken.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ModelError(f"no *.safetensors in {folder}; give a Hugging Face folder saved as safetensors")
    for file in files:
        # https://huggingface.co/docs/safetensors: 8 bytes of header length, then JSON
        with file.open("rb") as stream:
            size = file.stat().st_size
            try:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(length) if length <= size else b"")
                tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
                shapes |= {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
                end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
            except (struct.error, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise ModelError(f"{file} is no whole safetensors file ({size} bytes): copy the model again") from error
        if size != end:
            raise ModelError(f"{file} has {size} bytes, and its header says {end}: copy the model again")
    return shapes

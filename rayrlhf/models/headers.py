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
            except (struct.error, ValueError) as error:
                raise ModelError(f"{file} is no whole safetensors file ({size} bytes): copy the model again") from error
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes

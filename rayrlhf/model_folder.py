"""What a model's path means: a stage directory, one of its steps, or a Hugging Face folder."""

from __future__ import annotations

import os
import posixpath

import fsspec

from rayrlhf.checkpoint import StageDir, find_stage, is_local
from rayrlhf.errors import CheckpointError, ModelError
from rayrlhf.models.peft_config import VIRTUAL


def model_folder(path: str, takes_virtual_tokens: bool = False) -> str:
    """The Hugging Face folder that `path` means: a stage directory's `model/`, or `path` itself.

    Raises ModelError for none, and for a stage whose model is nothing without its virtual tokens unless
    `takes_virtual_tokens`; CheckpointError as `find_stage`, and for an unfinished stage.
    """
    if path.startswith("hf://"):
        raise ModelError(f"{path}: models of a hub are not fetched; download it (hf download NAME) and give the folder")
    try:
        filesystem, where = fsspec.core.url_to_fs(path.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise ModelError(f"{path} cannot be reached: {error}") from error
    is_here = is_local(filesystem)
    if is_here and os.path.isfile(f"{where}/config.json"):
        return where
    if is_here and not os.path.exists(where) and posixpath.basename(where) not in ("latest", "best"):
        raise ModelError(
            f"no model at {path}: there is no such directory. Give a stage directory (runs/NAME/STAGE) or a "
            "Hugging Face folder with config.json, weights and tokenizer."
        )
    if is_here and os.path.isdir(where):
        _check_no_part(path, where)
    stage = find_stage(path)
    is_named_step = posixpath.basename(where) in ("best", posixpath.basename(stage.path))
    if not stage.manifest["is_final"] and not is_named_step:
        raise CheckpointError(
            f"{path} is not finished: its newest checkpoint is of step {stage.manifest['step']}. Run the stage again, "
            f"it goes on from there; or name that checkpoint itself, {path}/{posixpath.basename(stage.path)}"
        )
    kind = _peft_kind(stage)
    if kind in VIRTUAL and not takes_virtual_tokens:
        raise ModelError(
            f"{path} was trained with peft.kind={kind}: its virtual tokens are no part of the weights, which are what "
            "later stages, vLLM and the server read. `rayrlhf generate` and peft's PeftModel.from_pretrained("
            "'.../model', '.../adapter') use them; for later stages train it with peft.kind=lora or ia3"
        )
    return stage.model_dir


def _check_no_part(path: str, where: str) -> None:
    """ModelError for a folder that is meant as a Hugging Face one and has no config.json."""
    names = os.listdir(where)
    if "adapter_config.json" in names:
        raise ModelError(
            f"{path} holds an adapter alone (adapter_config.json): merge it into its model (peft's merge_and_unload) "
            "and give the folder of that"
        )
    found = [name for name in names if name.endswith((".safetensors", ".bin", ".gguf")) or name.startswith("tokenizer")]
    if found and "config.json" not in names:
        raise ModelError(
            f"{path} has no config.json (found: {', '.join(sorted(names)[:8])}): copy the model again, whole"
        )


def virtual_tokens(path: str) -> str | None:
    """The folder of the tuned prompt or prefix that belongs to the model of stage `path`; None without one."""
    try:
        stage = find_stage(path)
    except CheckpointError:
        return None  # a Hugging Face folder
    return os.path.join(stage.path, "adapter") if _peft_kind(stage) in VIRTUAL else None


def _peft_kind(stage: StageDir) -> str | None:
    peft = stage.manifest["config"].get("peft")
    return peft.get("kind") if isinstance(peft, dict) else None

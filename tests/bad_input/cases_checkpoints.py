"""Mistakes with stages and runs: unfinished, torn, of other inputs, or not to be written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.registry import SFT, Case, given, without
from tests.bad_input.workshop import Answer, Workshop

FROM_STAGE = (*without(SFT, "model"), "model=runs/done/sft")
AGAIN = ("sft", "run.name=done", *SFT[2:])  # the stage runs/done/sft, which is there


def _spoilt(spoil: Callable[[Path], Any], *argv: str) -> Callable[[Workshop], Answer]:
    """SFT from a stage (or `argv`) after `spoil(the stage's step)`."""

    def provoke(here: Workshop) -> Answer:
        spoil(here.own_runs())
        return here.run(*(argv or FROM_STAGE))

    return provoke


def _manifest(*argv: str, **changes: Any) -> Callable[[Workshop], Answer]:
    def provoke(here: Workshop) -> Answer:
        here.own_runs()
        here.change("runs/done/sft/step_000003/stage.json", **changes)
        return here.run(*(argv or FROM_STAGE))

    return provoke


def _root_is_a_file(here: Workshop) -> Answer:
    here.write("disk", "")
    return here.run(*SFT, "run.root=disk")


def _another_byte(step: Path) -> None:
    weights = step / "model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


CASES = (
    Case(
        "a run in place of a stage",
        given(*without(SFT, "model"), "model=runs/done"),
        ("runs/done is not a finished stage", "runs/NAME/STAGE"),
    ),
    Case(
        "a stage that was never made",
        given(*without(SFT, "model"), "model=runs/done/ppo"),
        ("no model at runs/done/ppo",),
    ),
    Case(
        "a step that is not there",
        given(*without(SFT, "model"), "model=runs/done/sft/step_000099"),
        ("no model at", "step_000099"),
    ),
    Case(
        "the best step of a stage that has none",
        given(*without(SFT, "model"), "model=runs/done/sft/best"),
        ("no `best` file",),
    ),
    Case(
        "a stage whose steps were deleted",
        _spoilt(shutil.rmtree),
        ("names 'step_000003'", "there is none", "run the stage again"),
    ),
    Case(
        "a stage without its file `latest`",
        _spoilt(lambda step: (step.parent / "latest").unlink()),
        ("no `latest` file", "step_000003"),
    ),
    Case(
        "a file `latest` that is torn",
        _spoilt(lambda step: (step.parent / "latest").write_bytes(b"\xff\xfe")),
        ("`latest`", "step_000003"),
    ),
    Case(
        "a stage that was cut off", _manifest(is_final=False), ("is not finished", "of step 3", "Run the stage again")
    ),
    Case(
        "a file of a stage is gone",
        _spoilt(lambda step: (step / "model/config.json").unlink()),
        ("model/config.json is missing", "older step_*"),
    ),
    Case(
        "a file of a stage is shorter",
        _spoilt(lambda step: (step / "model/model.safetensors").write_bytes(b"x")),
        ("1 bytes instead of",),
    ),
    Case("a file of a stage was changed", _spoilt(_another_byte), ("another sha256", "run the stage again")),
    Case(
        "a torn stage.json",
        _spoilt(lambda step: (step / "stage.json").write_text("{")),
        ("stage.json cannot be read", "no JSON", "remove that step"),
    ),
    Case(
        "a stage.json without its files",
        _manifest(files=None),
        ("stage.json cannot be read", "files", "remove that step"),
    ),
    Case(
        "a stage.json changed by hand",
        _manifest(parents=[1], is_final="yes"),
        ("is_final, parents", "remove that step"),
    ),
    Case("a stage of other inputs is there", given(*AGAIN), ("was made from other inputs", "run.when_changed=replace")),
    Case(
        "a torn stage is there",
        _spoilt(lambda step: (step / "stage.json").write_text("{"), *AGAIN),
        ("cannot be read", "run.when_changed=replace"),
    ),
    Case(
        "a stage that would replace what it is made from",
        given(*without(AGAIN, "model"), "model=runs/done/sft", "run.when_changed=replace"),
        ("model=runs/done/sft lies inside runs/done/sft", "another run.name"),
    ),
    Case("runs are to lie in a file", _root_is_a_file, ("disk is a file", "Set run.root to a folder")),
    Case(
        "runs are to lie where nobody may write",
        given(*SFT, "run.root=/proc"),
        ("/proc/mine", "Set run.root to a folder of your own"),
    ),
    Case(
        "runs are to lie in a bucket without its library",
        given(*SFT, "run.root=s3://bucket/runs"),
        ("run.root=s3://bucket/runs", "s3fs"),
    ),
    Case(
        "a report of a run with a torn stage.json",
        _spoilt(lambda step: (step / "stage.json").write_text("{"), "report", "runs/done"),
        ("stage.json cannot be read", "remove that step"),
    ),
    Case(
        "watching a run with a torn stage.json",
        _spoilt(lambda step: (step / "stage.json").write_text("{"), "watch", "runs/done", "--once"),
        ("stage.json cannot be read", "remove that step"),
    ),
)

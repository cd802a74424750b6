"""Mistakes on the command line, of jobs and of tools."""

from __future__ import annotations

from tests.bad_input.registry import SFT, Case, file, given
from tests.bad_input.workshop import Answer, Workshop


def _torn_metrics(here: Workshop) -> Answer:
    here.own_runs()
    here.write("runs/done/metrics.jsonl", '{"stage": "sft", "st\n{"stage": "sft", "step": 1, "time_s": 1.0}\n')
    return here.run("report", "runs/done")


CASES = (
    Case("a job's name is misspelt", given("rewardmodel", "run.name=mine"), ("'rewardmodel'", "did you mean reward_")),
    Case("a setting has no =", given(*SFT, "train.epochs"), ("train.epochs does not exist", "key=value")),
    Case("a setting has no key", given(*SFT, "=3"), ("'=3'", "write key=value")),
    Case(
        "a setting is written as an option",
        given(*SFT, "--train.epochs=3"),
        ("--train.epochs=3", "dashes: train.epochs=3"),
    ),
    Case("an option is misspelt", given(*SFT, "--dryrun"), ("--dryrun", "did you mean --dry-run?")),
    Case("steps to profile that are none", given(*SFT, "--profile", "often"), ("--profile often", "--profile 5-6")),
    Case("steps to profile from 0 on", given(*SFT, "--profile", "0-2"), ("--profile 0-2", "count from 1")),
    Case("steps to profile backwards", given(*SFT, "--profile=6-5"), ("--profile 6-5", "the first step is after")),
    Case("too many steps to profile", given(*SFT, "--profile", "1-500"), ("500 steps", "at most 20")),
    Case(
        "steps to profile that a job does not take",
        given(*SFT, "train.max_steps=2", "--profile"),
        ("--profile 3", "sft takes 2 steps", "from 1 to 2"),
    ),
    Case(
        "a profile of a pipeline",
        given("pipeline", "run.name=mine", "sft.model=llama", "sft.data.train=sft.jsonl", "--profile"),
        ("--profile", "one stage that trains", "not for pipeline", "one by one"),
    ),
    Case(
        "two configuration files",
        file("b.yaml", "{}", "sft", "a.yaml", "b.yaml"),
        ("a.yaml, b.yaml", "one configuration file is taken"),
    ),
    Case(
        "a job without anything it needs", given("sft", "run.name=mine"), ("model: required", "a Hugging Face folder")
    ),
    Case(
        "a prompt that is too long for the model",
        given("generate", "llama", "x" * 200),
        ("201", "context is 128", "shorten"),
    ),
    Case("a run's name to `watch` that is none", given("watch", "nothing"), ("no run at nothing", "no such folder")),
    Case(
        "a stage to `watch` that the run has not",
        given("watch", "runs/done", "--stage", "ppo"),
        ("ppo", "there are sft"),
    ),
    Case(
        "seconds between looks that are none",
        given("watch", "runs/done", "--interval", "0"),
        ("--interval 0", "above 0"),
    ),
    Case("a stage's folder to `report`", given("report", "runs/done/sft"), ("is a stage", "give its run, runs/done")),
    Case("metrics.jsonl with a torn line in the middle", _torn_metrics, ("metrics.jsonl, line 1", "remove that line")),
    Case("one run to `compare`", given("compare", "runs/done"), ("got 1", "rayrlhf compare runs/ONE runs/OTHER")),
    Case(
        "a comparison into a folder that is not there",
        given("compare", "runs/done", "runs/done", "--output", "nowhere/x.html"),
        ("nowhere/x.html", "there is no folder", "give the path"),
    ),
    Case("an argument to `doctor`", given("doctor", "--fix"), ("--fix", "takes no arguments")),
    Case("a job that cannot be submitted", given("submit", "generate", "llama"), ("'generate'", "there are prepare")),
    Case(
        "a submitted job with a relative run root",
        given("submit", *SFT),
        ("run.root=runs is relative", "run.root=$PWD/runs"),
    ),
    Case(
        "a variable without a value to `submit`", given("submit", *SFT, "--env", "TOKEN"), ("TOKEN", "write NAME=VALUE")
    ),
)

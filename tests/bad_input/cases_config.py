"""Mistakes in configurations: files, types, values, and keys that do not go together."""

from __future__ import annotations

from collections.abc import Callable

from tests.bad_input.registry import DPO, PPO, PRETRAIN, SFT, Case, file, given, without
from tests.bad_input.workshop import Answer, Workshop


def _yaml(content: str | bytes) -> Callable[[Workshop], Answer]:
    return file("mine.yaml", content, "sft", "mine.yaml", *SFT[1:])


def _function(code: str) -> Callable[[Workshop], Answer]:
    """A reward function in a module of its own name: Python keeps what it has imported."""
    name = f"mine_{abs(hash(code))}"

    def provoke(here: Workshop) -> Answer:
        here.write(f"{name}.py", code)
        answer = here.run(*without(PPO, "reward_model"), f"reward_function={name}:score")
        return here.renamed(answer, name, "mine")

    return provoke


CASES = (
    Case("the file is not there", given("sft", "mine.yaml"), ("mine.yaml does not exist", "give the path")),
    Case("the file is a folder", given("sft", "runs"), ("runs is a folder", "give the path of a YAML file")),
    Case("the file is indented with a tab", _yaml("train:\n\tepochs: 2\n"), ("line 2", "indent with spaces")),
    Case("a key stands a column too far right", _yaml("train:\n  epochs: 2\n   keep: 4\n"), ("line 3", "same column")),
    Case("a key stands twice", _yaml("train: {keep: 1}\ntrain: {keep: 2}\n"), ("'train'", "lines 1 and 2", "keep one")),
    Case("a bracket is open", _yaml("train: {keep: 1\n"), ("mine.yaml, line 2", "not valid YAML")),
    Case("the file is a list", _yaml("- epochs\n- keep\n"), ("holds a list", "write lines such as")),
    Case(
        "the file is text in Latin-1",
        _yaml("run: {name: mine} # caf\xe9".encode("latin-1")),
        ("0xe9", "save it as UTF-8"),
    ),
    Case("the file is a picture", _yaml(b"\x89PNG\r\n\x1a\n\x00\x00"), ("mine.yaml", "0x89", "save it as UTF-8")),
    Case("the file holds two documents", _yaml("run: {name: a}\n---\nrun: {name: b}\n"), ("line 2", "one document")),
    Case("a key is a list", _yaml("? [epochs, keep]\n: 2\n"), ("line 1", "keys are words")),
    Case("a value begins with !", _yaml("model: !mine x\n"), ("line 1", "!mine", "has quotes")),
    Case("a key is misspelt", given(*SFT, "train.engne.lr=1"), ("train.engne", "did you mean train.engine?")),
    Case("a key without its section", given(*SFT, "minibatch=8"), ("minibatch", "did you mean train.minibatch")),
    Case("a key of another library", given(*PPO, "sampling.top_p=0.9"), ("sampling.top_p", "keys here: temperature")),
    Case("a word where a number is expected", given(*SFT, "train.minibatch=many"), ("expected int", "'many'")),
    Case("a decimal comma", given(*SFT, "train.engine.lr=1,5"), ("train.engine.lr", "expected float", "'1,5'")),
    Case("a fraction of a row", given(*SFT, "train.minibatch=2.5"), ("train.minibatch: expected int", "2.5")),
    Case("a negative learning rate", given(*SFT, "train.engine.lr=-1e-5"), ("greater than 0", "-1e-05")),
    Case("a minibatch of zero", given(*SFT, "train.minibatch=0"), ("train.minibatch", "or equal to 1", "got 0")),
    Case(
        "a learning rate that is not a number",
        given(*SFT, "train.engine.lr=.nan"),
        ("train.engine.lr", "finite", "nan"),
    ),
    Case("an infinite learning rate", given(*SFT, "train.engine.lr=.inf"), ("train.engine.lr", "finite number", "inf")),
    Case("one beta of two", given(*SFT, "train.engine.betas=[0.9]"), ("train.engine.betas.1: required",)),
    Case(
        "a beta above 1", given(*SFT, "train.engine.betas=[0.9, 1.5]"), ("train.engine.betas.1", "less than 1", "1.5")
    ),
    Case("a seed with too many digits", given(*SFT, "run.seed=99999999999"), ("run.seed", "less than", "99999999999")),
    Case(
        "a precision that is not there",
        given(*SFT, "train.engine.precision=fp16"),
        ("'fp16'", "'float32', 'bf16' or 'auto'"),
    ),
    Case("a section that is a number", given(*SFT, "train=3"), ("train: expected a section of keys", "got 3")),
    Case("a word where a list is expected", given(*SFT, "run.trackers=wandb"), ("run.trackers", "write [wandb]")),
    Case(
        "a run's name that YAML reads as a number",
        file("mine.yaml", "run: {name: 1}\n", "sft", "mine.yaml", *SFT[2:]),
        ("run.name", "write it in quotes, '1'"),
    ),
    Case("a run's name with a slash", given("sft", "run.name=a/b", *SFT[2:]), ("'a/b'", "run.root")),
    Case("a run's name of dots", given("sft", "run.name=..", *SFT[2:]), ("'..'", "use letters, digits")),
    Case("a key inside a value", given(*SFT, "run.name.x=3"), ("run.name is the value 'mine'", "has no keys")),
    Case("W&B without an account", given(*SFT, "run.trackers=[wandb]"), ("wandb login", "WANDB_MODE=offline")),
    Case(
        "warm-up longer than training",
        given(*SFT, "train.max_steps=10", "train.engine.warmup_steps=10"),
        ("engine.warmup_steps=10", "max_steps=10", "lower one"),
    ),
    Case(
        "early stopping without validations", given(*SFT, "train.early_stopping.patience=2"), ("validate_every to 1",)
    ),
    Case(
        "early stopping without held-out rows",
        given(*SFT, "train.validate_every=5", "train.early_stopping.patience=2"),
        ("set data.validation",),
    ),
    Case(
        "rows longer than the model's context",
        given(*SFT, "data.max_tokens=300"),
        ("300", "128", "set data.max_tokens=128"),
    ),
    Case(
        "a row does not fit a microbatch", given(*SFT, "train.microbatch_tokens=32"), ("64", "=32", "raise it or lower")
    ),
    Case("a pair does not fit a microbatch", given(*DPO, "train.microbatch_tokens=100"), ("128", "twice", "=100")),
    Case(
        "more workers than rows in a minibatch",
        given(*SFT, "train.num_workers=4", "train.minibatch=2"),
        ("minibatch=2", "4 workers", "raise minibatch"),
    ),
    Case(
        "groups that do not divide the rollouts",
        given(*PPO, "algorithm.group_size=7"),
        ("=64", "group_size=7", "set one"),
    ),
    Case(
        "minibatches that do not divide the rollouts", given(*PPO, "policy.minibatch=7"), ("=64", "policy.minibatch=7")
    ),
    Case(
        "prompt and response longer than the context",
        given(*PPO, "sampling.max_new_tokens=100"),
        ("164", "128", "set max_new_tokens to at most 64"),
    ),
    Case("an estimator is misspelt", given(*PPO, "algorithm.estimator=gpro"), ("'gpro'", "'grpo'")),
    Case(
        "keys of a critic that there is none of",
        given(*PPO, "algorithm.estimator=grpo", "algorithm.group_size=2", "critic.epochs=3"),
        ("estimator=grpo has no critic", "leave critic_model and critic.* out"),
    ),
    Case("no held-out prompts", given(*without(PPO, "prompts.validation")), ("prompts.validation is not set",)),
    Case(
        "a reward model and a reward function",
        given(*PPO, "reward_function=rayrlhf.data.demo:gold"),
        ("reward_model is judge", "set one"),
    ),
    Case(
        "a temperature of zero in training",
        given(*PPO, "sampling.temperature=0"),
        ("sampling.temperature", "greater than 0"),
    ),
    Case(
        "a reward function without its module",
        given(*without(PPO, "reward_model"), "reward_function=score"),
        ("'score'", "module:function"),
    ),
    Case(
        "a reward function's module is not found",
        given(*without(PPO, "reward_model"), "reward_function=nowhere:score"),
        ("No module named 'nowhere'", "PYTHONPATH"),
    ),
    Case(
        "a reward function's module has an error",
        _function("def score(prompts, responses):\nreturn 1\n"),
        ("IndentationError", "mend it"),
    ),
    Case(
        "a reward function's module ends the program", _function("import sys\nsys.exit(3)\n"), ("SystemExit", "mend it")
    ),
    Case(
        "a reward function without parameters",
        _function("def score(): return 1.0\n"),
        ("def score(prompts, responses)",),
    ),
    Case(
        "a reward function's column is not in the rows",
        _function("def score(p, r, answer): return [0.0] * len(r)\n"),
        ("answer", "no others", "prompts.columns.answer="),
    ),
    Case(
        "a width that its heads do not divide",
        given(*PRETRAIN, "model.hidden=100", "model.heads=3"),
        ("100", "heads=3", "multiple"),
    ),
    Case(
        "an adapter on a layer that is not there",
        given(*SFT, "peft.rank=4", "peft.target_modules=[nope]"),
        ("'nope'", "q_proj"),
    ),
    Case(
        "prompt tuning for DPO", given(*DPO, "train.minibatch=8", "peft.kind=prompt_tuning"), ("for SFT only", "lora")
    ),
    Case("a pipeline without a stage", given("pipeline", "run.name=mine"), ("no stage is given", "there are prepare")),
    Case(
        "a stage of a pipeline is misspelt", given("pipeline", "run.name=mine", "stf={}"), ("stf", "did you mean sft?")
    ),
    Case(
        "stages before this one are in a run that is not there",
        given("pipeline", "run.name=mine", "upstream=runs/none", "sft.data.train=sft.jsonl"),
        ("upstream=runs/none", "no such folder"),
    ),
    Case(
        "a stage of a pipeline has a run of its own",
        given("pipeline", "run.name=mine", "upstream=runs/done", "sft.run.name=other"),
        ("sft.run differs", "remove sft.run"),
    ),
)

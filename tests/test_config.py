"""Loading, overriding and complaining, on a configuration with every kind of key."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from rayrlhf.config import Section, load, to_yaml
from rayrlhf.config_help import help_text
from rayrlhf.errors import ConfigError, UserError


class KL(Section):
    """How far the policy may go."""

    beta: float = Field(default=0.05, ge=0, description="weight of the KL")
    target: float | None = Field(default=None, description="what beta is steered to")


class VLLM(Section):
    """The vLLM engine."""

    kind: Literal["vllm"] = Field(default="vllm", description="which engine")
    memory_gib: float = Field(default=1.0, gt=0, description="KV cache")


class Plain(Section):
    """The transformers engine."""

    kind: Literal["transformers"] = Field(default="transformers", description="which engine")
    batch: int = Field(default=8, ge=1, description="sequences at once")


class PPO(Section):
    """The algorithm."""

    kl: KL = Field(default=KL(beta=0.2, target=6.0), description="the KL penalty")
    epochs: int = Field(default=4, description="passes over a batch")


class Job(Section):
    """A job with every kind of key."""

    name: str = Field(description="the run's name")
    note: str | None = Field(default=None, description="anything")
    ppo: PPO = Field(default_factory=PPO, description="the algorithm")
    probe: KL | None = Field(default=None, description="a section that may be off")
    engine: Annotated[VLLM | Plain, Field(discriminator="kind")] = Field(
        default=VLLM(memory_gib=2.0), description="what generates"
    )
    pools: dict[str, KL] = Field(default={"all": KL(beta=9.0)}, description="by name")
    layout: str | KL = Field(default="cpu", description="a name or written out")
    sizes: list[int] = Field(default=[1, 2], description="numbers")
    mode: Literal["a", "b"] = Field(default="a", description="one of two")
    is_on: bool = Field(default=False, description="a flag")


def of(*overrides: str) -> Job:
    return load(Job, None, ["name=x", *overrides])


def complaint(*overrides: str, path: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Job, path, list(overrides))
    return str(caught.value)


# ---- files -----------------------------------------------------------------------------------------


def test_file_then_overrides_then_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("# a comment\nname: demo\nppo:\n  kl: {beta: 0.5}\nsizes: [3]\n")
    config = load(Job, str(path), ["ppo.epochs=2", "ppo.epochs=3"])
    assert (config.name, config.ppo.kl.beta, config.ppo.epochs, config.sizes) == ("demo", 0.5, 3, [3])
    assert config.ppo.kl.target == 6.0  # PPO's default for its kl, not KL's own


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nname: b\n", "key 'name' stands twice, on lines 1 and 2"),
        ("name: a\nppo:\n  kl: {beta: 1, beta: 2}\n", "key 'beta' stands twice"),
        ("- 1\n", "holds a list"),
        ("just words\n", "holds the value 'just words'"),
        ("name: [\n", "not valid YAML"),
    ],
)
def test_files_that_are_refused(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    message = complaint(path=str(path))
    assert said in message and str(path) in message


def test_missing_file_and_folder(tmp_path):
    assert "does not exist" in complaint(path=str(tmp_path / "no.yaml"))
    assert "is a folder" in complaint(path=str(tmp_path))
    assert issubclass(ConfigError, UserError)


def test_empty_file_is_no_keys(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load(Job, str(tmp_path / "c.yaml"), ["name=x"]) == of()


# ---- overrides -------------------------------------------------------------------------------------


def test_overrides_are_yaml_values():
    config = of("ppo.kl.beta=1e-4", "is_on=true", "sizes=[4, 5]", "ppo.kl.target=null", "mode=b")
    assert (config.ppo.kl.beta, config.is_on, config.sizes) == (1e-4, True, [4, 5])
    assert (config.ppo.kl.target, config.mode) == (None, "b")


@pytest.mark.parametrize(
    "text",
    ["2026-11-22", "no", "007", "1e3", "a: b", "[x", "what? {y}", "a=b", "'", "# x", "a # b", "12", ""],
)
def test_text_keys_take_any_text(text):
    assert of(f"note={text}").note == text


def test_text_keys_can_be_unset_or_quoted():
    assert of("note=null").note is None
    assert of('note="null"').note == "null"
    assert of("note=''").note == ""


def test_optional_section_is_made_by_an_override():
    assert of().probe is None
    assert of("probe.beta=3").probe == KL(beta=3)


def test_override_of_one_entry_keeps_the_others():
    assert of("pools.b.beta=1").pools == {"all": KL(beta=9.0), "b": KL(beta=1.0)}
    assert of("pools.all.target=1").pools == {"all": KL(beta=9.0, target=1.0)}
    assert of("pools={b: {beta: 1}}").pools == {"b": KL(beta=1.0)}


def test_union_keeps_or_changes_its_kind():
    assert of("engine.kind=vllm").engine == VLLM(memory_gib=2.0)
    assert of("engine.memory_gib=3").engine == VLLM(memory_gib=3.0)
    assert of("engine.kind=transformers", "engine.batch=2").engine == Plain(batch=2)
    assert of("layout.beta=1").layout == KL(beta=1.0)


@pytest.mark.parametrize("override", ["name", "=1", "a..b=1", ".a=1"])
def test_overrides_of_another_form(override):
    assert "write key=value" in complaint(override)


def test_override_below_a_value(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\nsizes: [1]\n")
    assert "cannot set name.first: name is the value 'x'" in complaint("name.first=1", path=str(path))
    assert "cannot set sizes.a: sizes is a list" in complaint("sizes.a=1", path=str(path))


# ---- problems --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ppo.kl.bta=1", "ppo.kl.bta: unknown key; did you mean ppo.kl.beta?"),
        ("pppo.kl.beta=1", "pppo: unknown key; did you mean ppo?"),
        ("epochs=1", "epochs: unknown key; did you mean ppo.epochs?"),
        ("kl.beta=1", "kl: unknown key; did you mean ppo.kl?"),
        ("probe.bta=1", "probe.bta: unknown key; did you mean probe.beta?"),
        ("pools.mine.tarket=1", "pools.mine.tarket: unknown key; did you mean pools.mine.target?"),
        ("engine.memory=1", "engine.memory: unknown key; did you mean engine.memory_gib?"),
        ("layout.bta=1", "layout.bta: unknown key; did you mean layout.beta?"),
        ("zzz=1", "zzz: unknown key; keys here: name, note, ppo"),
        ("ppo.kl.beta=x", "ppo.kl.beta: expected float, got 'x'"),
        ("ppo.kl.beta=-1", "ppo.kl.beta: expected a value greater than or equal to 0, got -1"),
        ("ppo.epochs=1.5", "ppo.epochs: expected int, got 1.5"),
        ("ppo=3", "ppo: expected a section of keys, got 3"),
        ("sizes=[1, a]", "sizes.1: expected int, got 'a'"),
        ("mode=c", "mode: expected 'a' or 'b', got 'c'"),
        ("is_on=perhaps", "is_on: expected bool (true or false), got 'perhaps'"),
        ("layout=3", "layout: expected str or a section of keys, got 3"),
        ("engine.kind=tgi", "engine: its key 'kind' is 'tgi', but must be one of 'vllm', 'transformers'"),
        ("engine.memory_gib=0", "engine.memory_gib: expected a value greater than 0, got 0"),
    ],
)
def test_one_problem(override, said):
    assert complaint("name=x", override).startswith(f"configuration: {said}")


def test_all_problems_at_once():
    message = complaint("ppo.kl.bta=1", "ppo.epochs=x", "mode=c")
    assert message.startswith("4 problems")
    for said in ("name: required", "ppo.kl.bta: unknown", "ppo.epochs: expected int", "mode: expected"):
        assert said in message


class Checked(Section):
    """A section with a rule of its own."""

    batch: int = Field(default=8, description="rows")
    part: int = Field(default=4, description="rows a step")

    @model_validator(mode="after")
    def _divides(self) -> Checked:
        if self.batch % self.part:
            raise ValueError(f"batch {self.batch} is no multiple of part {self.part}")
        return self


class Outer(Section):
    """Holds one."""

    inner: Checked = Field(default=Checked(batch=12), description="checked")


def test_rules_of_a_section_are_told_with_its_name():
    with pytest.raises(ConfigError, match=r"configuration: inner: batch 12 is no multiple of part 5$"):
        load(Outer, None, ["inner.part=5"])


class Based(Section):
    """A section that completes itself from `base`, as a layout does from a file."""

    base: str = Field(default="one", description="where from")
    size: int = Field(description="how much")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given):
        return {"size": {"one": 1, "two": 2}[given.get("base", "one")], **given} if isinstance(given, dict) else given


class WithBased(Section):
    """Its default must not hide what another base says."""

    layout: Based = Field(default_factory=lambda: Based.model_validate({}), description="completes itself")


def test_a_section_that_completes_itself_is_left_to_it():
    assert load(WithBased, None, ["layout.base=two"]).layout.size == 2
    assert load(WithBased, None, ["layout.size=7"]).layout.size == 7


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        of().ppo.epochs = 5  # type: ignore[misc]


# ---- round trip and help ---------------------------------------------------------------------------

numbers = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
kls = st.builds(KL, beta=numbers, target=st.none() | numbers)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
jobs = st.builds(
    Job,
    name=texts | st.sampled_from(["null", "1e3", "no", "~", "0x1f", "1_0", "2026-11-22", "<<", "a: b", ".5", "1:30"]),
    note=st.none() | texts,
    ppo=st.builds(PPO, kl=kls, epochs=st.integers()),
    probe=st.none() | kls,
    engine=st.builds(VLLM, memory_gib=st.floats(0.1, 9)) | st.builds(Plain, batch=st.integers(1, 9)),
    pools=st.dictionaries(texts, kls, max_size=3),
    layout=texts | kls,
    sizes=st.lists(st.integers(), max_size=3),
    mode=st.sampled_from("ab"),
    is_on=st.booleans(),
)


@given(job=jobs)
def test_yaml_reads_back(tmp_path_factory, job):
    path = tmp_path_factory.mktemp("yaml") / "c.yaml"
    path.write_text(to_yaml(job), encoding="utf-8")
    assert load(Job, str(path), []) == job


def test_help_lists_every_key_once_with_the_parents_default():
    text = help_text(Job, "job")
    lines = text.splitlines()
    assert lines[0].startswith("usage: rayrlhf job [CONFIG.yaml] [key=value ...]")
    for line in [
        "  name  (str)  required",
        "  ppo.kl.beta  (float)  = 0.2",
        "  ppo.kl.target  (float | null)  = 6.0",
        "  ppo.epochs  (int)  = 4",
        "  probe  (section KL | null)  = null",
        "  probe.beta  (float)  = 0.05",
        "  engine.memory_gib  (float)  = 2.0",
        "  engine.batch  (int)  = 8",
        "  pools  (mapping of NAME: section KL)  = {all: {beta: 9.0, target: null}}",
        "  pools.NAME.beta  (float)  = 0.05",
        "  sizes  (list of int)  = [1, 2]",
        "  mode  (a | b)  = a",
    ]:
        assert lines.count(line) == 1, line
    assert lines[lines.index("  ppo.kl.beta  (float)  = 0.2") + 1].strip() == "weight of the KL"

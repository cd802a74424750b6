"""Whatever a configuration holds, it is loaded or refused with a ConfigError; a job's checks refuse it with a
UserError."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.generate import GenerateConfig
from jobs.pipeline import PipelineConfig
from jobs.serve_config import ServeConfig
from jobs.stage_configs import CLASSES, config_class
from rayrlhf import config_yaml
from rayrlhf.config import from_tree, load, to_yaml
from rayrlhf.config_keys import keys_of
from rayrlhf.errors import ConfigError
from tests.bad_input.fuzzing import anything, examples, mutated, refused, texts, torn
from tests.bad_input.registry import GOOD
from tests.bad_input.workshop import workshops

FOLDER = Path(__file__).parents[2] / "jobs/configs"
JOBS: dict[str, Any] = {"pipeline": PipelineConfig, "serve": ServeConfig, "generate": GenerateConfig}
JOBS |= {kind: config_class(kind) for kind in CLASSES}


@functools.cache
def trees() -> list[tuple[str, dict[str, Any]]]:
    """(job, keys) of the configurations in jobs/configs, and of each of their stages."""
    found: list[tuple[str, dict[str, Any]]] = [("generate", {"model": "llama"})]
    for path in sorted(FOLDER.glob("*.yaml")):
        tree = config_yaml.parse(path.read_text(), str(path))
        found.append(("serve" if path.stem == "serve" else "pipeline", tree))
        if path.stem != "serve":
            whole = from_tree(PipelineConfig, tree)
            found += [(stage, getattr(whole, stage).model_dump(mode="json")) for stage in whole.stages]
    return found


def loads(job: str, tree: Any) -> None:
    found = refused(from_tree, JOBS[job], tree)
    assert not isinstance(found, Exception) or isinstance(found, ConfigError)
    if not isinstance(found, Exception):  # then its YAML is the same configuration
        assert from_tree(JOBS[job], config_yaml.parse(to_yaml(found), "")) == found


@examples(150)
@given(st.data())
def test_fuzz_mutated_configurations(data: st.DataObject) -> None:
    job, tree = data.draw(st.sampled_from(trees()))
    loads(job, data.draw(mutated(tree)))


@examples(80)
@example("ppo", {"layout": {"base": ["cpu"]}})
@example("ppo", {"layout": "cpu" * 200})
@example("sft", {"train": {"engine": {"betas": [0.9]}}})
@given(st.sampled_from(sorted(JOBS)), st.dictionaries(texts, anything, max_size=4))
def test_fuzz_any_configuration(job: str, tree: dict[str, Any]) -> None:
    loads(job, tree)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("configs")


@examples(100)
@given(data=st.data())
def test_fuzz_torn_files(folder: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(FOLDER.glob("*.yaml"))))
    (folder / "mine.yaml").write_bytes(data.draw(torn(path.read_bytes())))
    found = refused(load, ServeConfig if path.stem == "serve" else PipelineConfig, str(folder / "mine.yaml"), [])
    assert not isinstance(found, Exception) or isinstance(found, ConfigError)


@pytest.fixture(scope="module")
def opened():
    with workshops() as found, found() as workshop:
        yield workshop


@functools.cache
def keys(job: str) -> list[str]:
    return [key.dotted for key in keys_of(JOBS[job])]


@examples(120)
@given(st.data())
@example((GOOD[0], ["train.engine.betas=[0.9]"]))
@example((GOOD[-1], ["prompts="]))
@example((GOOD[3], ["model.layers=2147483648"]))
@example((GOOD[4], ["layout.pools.all.bundles=2147483648"]))
@example((GOOD[-1], ["max_prompt_tokens=1"]))
def test_fuzz_command_lines(opened, data: Any) -> None:
    """The whole way of a job that nothing is wrong with but some settings, up to where it would reach for a cluster."""
    if isinstance(data, tuple):
        argv, more = data
    else:
        argv = data.draw(st.sampled_from(GOOD))
        key = st.sampled_from(keys(argv[0])).map(lambda dotted: dotted.replace("NAME", "policy").replace(".N.", ".0."))
        value = texts | anything.map(lambda one: config_yaml.dump(one, flow=True))
        more = data.draw(st.lists(st.tuples(key, value).map("=".join), min_size=1, max_size=2))
    answer = opened.run(*argv, *more)
    assert (answer.code, answer.started) in ((2, False), (0, True)), answer
    assert answer.started or answer.message.startswith("error: "), answer

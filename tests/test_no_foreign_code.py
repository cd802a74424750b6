"""No file that is read can run code: no pickles, no code of a model's folder.  Read from the source with ast."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rayrlhf.errors import ModelError
from rayrlhf.models.causal_lm import check_folder, load_tokenizer
from rayrlhf.models.pretrained import model_of, tokenizer_of

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("rayrlhf", "cluster", "actors", "jobs", "benchmarks")
# They can run what they read.  In the two files counts go from a task to the driver of the same run, never into a file.
MODULES = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib")
BETWEEN_TASKS = {"rayrlhf/data/cleaning/execute.py", "rayrlhf/data/cleaning/passes.py"}
CALLS = {"torch.load", "torch.save", "torch.hub.load", "pandas.read_pickle", "eval", "exec", "yaml.load"}
SAFE_YAML = "rayrlhf/config_yaml.py"  # its loader is a SafeLoader
# the only value that each may be given
OPTIONS = {"trust_remote_code": False, "allow_pickle": False, "weights_only": True, "use_safetensors": True}
READERS = {
    "rayrlhf/models/pretrained.py": "auto_class",
    "rayrlhf/models/causal_lm.py": "GenerationConfig",  # JSON
    "actors/engines/base.py": "GenerationConfig",
    "rayrlhf/models/adapters.py": "PeftModel",  # after a look that its weights are safetensors
}


def found_in(path: Path, file: str) -> Iterator[str]:
    """What in a file could run code of others."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if name.split(".")[0] in MODULES and file not in BETWEEN_TASKS:
                yield f"{file}:{node.lineno} imports {name}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS and (called, file) != ("yaml.load", SAFE_YAML):
                yield f"{file}:{node.lineno} calls {called}"
            if called.endswith(".from_pretrained") and called != f"{READERS.get(file)}.from_pretrained":
                yield f"{file}:{node.lineno} calls {called}"
            for keyword in node.keywords:
                if keyword.arg in OPTIONS and ast.unparse(keyword.value) != str(OPTIONS[keyword.arg]):
                    yield f"{file}:{node.lineno} sets {keyword.arg}"


def test_nothing_read_from_a_file_can_run() -> None:
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 200
    assert [line for path in files for line in found_in(path, path.relative_to(ROOT).as_posix())] == []


PLANTED = [
    "import pickle",
    "from cloudpickle import loads",
    "x = torch.load('f')",
    "x = pandas.read_pickle('f')",
    "x = numpy.load('f', allow_pickle=True)",
    "x = AutoModel.from_pretrained('f')",
    "x = load('f', trust_remote_code=flag)",
    "x = eval('1')",
]


@pytest.mark.parametrize("line", PLANTED)
def test_what_could_is_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(line)
    assert len(list(found_in(tmp_path / "a.py", "rayrlhf/a.py"))) == 1


def test_weights_as_pickles_are_refused_with_what_to_do(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin alone: that is a pickle.*convert it once"):
        check_folder(str(folder))
    with pytest.raises(OSError, match="safetensors"):  # nor without that look
        model_of(AutoModelForCausalLM, str(folder))
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)  # as the message says
    assert check_folder(str(folder)) > 0 and model_of(AutoModelForCausalLM, str(folder))


def test_a_models_own_code_is_never_run(tiny_model: Callable[[str], str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\nclass M: pass\nclass T: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Unheard", "auto_map": {"AutoTokenizer": ["code.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"needs Python code of its own .* never run here"):
        model_of(AutoModelForCausalLM, str(folder))
    for load in (tokenizer_of, load_tokenizer):
        try:
            load(str(folder))
        except ModelError as error:
            assert "never run here" in str(error)
    assert not mark.exists()

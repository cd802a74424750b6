"""The one-way rules of imports, read from the source with ast: nothing is imported to check them.

jobs -> actors -> cluster -> rayrlhf;  algorithms: torch only;  roles: batches only;
coordinator: never ray;  the command line: nothing that takes seconds to load.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("rayrlhf", "cluster", "actors", "jobs")  # each may import itself and those before it
HEAVY = ("torch", "ray", "deepspeed", "vllm", "transformers", "datasets")
# The only files that may import these, at module level or inside a function.
HOMES = {
    "vllm": {"actors/engines/vllm.py"},
    "deepspeed": {"rayrlhf/training/engine.py"},
    "ray.train": {"rayrlhf/training/launcher.py", "rayrlhf/training/supervised.py"},
    "ray.serve": {
        "jobs/serve.py",
        "actors/llm_server.py",
        "actors/openai_ingress.py",
        "actors/reward_server.py",
    },
    "wandb": {"rayrlhf/trackers/wandb.py", "rayrlhf/trackers/choice.py"},
    "mlflow": {"rayrlhf/trackers/mlflow.py"},
    "tensorboardX": {"rayrlhf/trackers/tensorboard.py"},
    "peft": {"rayrlhf/models/adapters.py"},
}


class Import(NamedTuple):
    """`name` is dotted down to the imported object; lazy: inside a function or `if TYPE_CHECKING`."""

    file: str
    line: int
    name: str
    is_lazy: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def is_under(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def imports_of(root: Path, path: Path) -> list[Import]:
    file = path.relative_to(root).as_posix()
    package = path.relative_to(root).parent.parts

    def visit(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, is_lazy)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            for alias in node.names:
                yield Import(file, node.lineno, f"{base}.{alias.name}", is_lazy)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, True)
            for child in node.orelse:
                yield from visit(child, is_lazy)
        else:
            is_lazy = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, is_lazy)

    return list(visit(ast.parse(path.read_text(), filename=str(path)), False))


def tree(root: Path) -> dict[str, list[Import]]:
    """file -> its imports, for all our packages."""
    files = [path for layer in LAYERS for path in sorted((root / layer).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): imports_of(root, path) for path in files}


def files_run_by(name: str, modules: dict[str, list[Import]]) -> list[str]:
    """Our files that importing `name` runs: the module and the packages above it."""
    parts = name.split(".")
    candidates = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return [file for stem in candidates for file in (f"{stem}/__init__.py", f"{stem}.py") if file in modules]


def layer_violations(modules: dict[str, list[Import]]) -> list[str]:
    above = {layer: LAYERS[number + 1 :] for number, layer in enumerate(LAYERS)}
    return [str(i) for file, found in modules.items() for i in found if is_under(i.name, *above[file.split("/")[0]])]


def only(modules: dict[str, list[Import]], files: str, *allowed: str) -> list[str]:
    """Imports in files starting with `files` other than the standard library and `allowed`."""
    ok = (*sys.stdlib_module_names, *allowed)
    return [
        str(i) for file, found in modules.items() if file.startswith(files) for i in found if not is_under(i.name, *ok)
    ]


def home_violations(modules: dict[str, list[Import]]) -> list[str]:
    found = [i for imports in modules.values() for i in imports]
    return [
        str(i) for i in found for library, homes in HOMES.items() if is_under(i.name, library) and i.file not in homes
    ]


def loads(modules: dict[str, list[Import]], start: str, *libraries: str) -> list[str]:
    """The chains by which merely importing the file `start` loads one of `libraries`."""
    chains, queue, bad = {start: start}, [start], []
    while queue:
        file = queue.pop()
        for found in modules[file]:
            if found.is_lazy:
                continue
            if is_under(found.name, *libraries):
                bad.append(f"{chains[file]} -> {found.name} (line {found.line})")
            for following in files_run_by(found.name, modules):
                if following not in chains:
                    chains[following] = f"{chains[file]} -> {following}"
                    queue.append(following)
    return bad


@pytest.fixture(scope="module")
def modules() -> dict[str, list[Import]]:
    return tree(ROOT)


def test_layers_import_one_way(modules):
    assert layer_violations(modules) == []


def test_algorithms_import_only_torch(modules):
    assert only(modules, "rayrlhf/algorithms/", "torch", "rayrlhf.algorithms") == []


def test_roles_import_only_batches(modules):
    assert only(modules, "rayrlhf/roles.py", "torch", "rayrlhf.batches") == []


def test_coordinator_never_imports_ray(modules):
    """Neither lazily, nor by what it loads."""
    assert [str(i) for i in modules["rayrlhf/coordinator.py"] if is_under(i.name, "ray")] == []
    assert loads(modules, "rayrlhf/coordinator.py", "ray") == []


def test_slow_libraries_stay_in_their_files(modules):
    assert home_violations(modules) == []


def test_the_command_line_loads_nothing_heavy(modules):
    jobs = [file for file in modules if file.startswith("jobs/") and file.count("/") == 1]
    assert "jobs/ppo.py" in jobs
    assert [chain for job in jobs for chain in loads(modules, job, *HEAVY)] == []


def test_config_models_import_only_light_things(modules):
    light = ("pydantic", "yaml", "rayrlhf.config", "rayrlhf.config_yaml", "rayrlhf.errors")
    configs = [file for file in modules if file.endswith("/config.py") and file != "rayrlhf/config.py"]
    assert configs
    assert [line for file in configs for line in only(modules, file, *light)] == []


def test_packages_stay_empty(modules):
    assert [str(i) for file, found in modules.items() if file.endswith("__init__.py") for i in found] == []


@pytest.fixture
def planted(tmp_path):
    """A tree with one violation of each rule."""
    sources = {
        "rayrlhf/__init__.py": [],
        "rayrlhf/low.py": ["def f():", "    from actors import policy"],
        "rayrlhf/algorithms/kl.py": [
            "import torch, numpy",
            "from rayrlhf import batches",
            "from .masking import x",
        ],
        "rayrlhf/deep.py": ["if TYPE_CHECKING:", "    import ray", "else:", "    import torch.nn"],
        "actors/policy.py": ["import vllm.config", "from ray import serve", "from ray.served import x"],
        "jobs/ppo.py": ["import rayrlhf.deep", "def f():", "    import ray"],
    }
    for file, text in sources.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("\n".join(text))
    return tree(tmp_path)


def test_planted_violations_are_found(planted):
    assert layer_violations(planted) == ["rayrlhf/low.py:2 imports actors.policy"]
    assert only(planted, "rayrlhf/algorithms/", "torch", "rayrlhf.algorithms") == [
        "rayrlhf/algorithms/kl.py:1 imports numpy",
        "rayrlhf/algorithms/kl.py:2 imports rayrlhf.batches",
    ]
    assert home_violations(planted) == [
        "actors/policy.py:1 imports vllm.config",
        "actors/policy.py:2 imports ray.serve",
    ]
    assert loads(planted, "jobs/ppo.py", *HEAVY) == ["jobs/ppo.py -> rayrlhf/deep.py -> torch.nn (line 4)"]

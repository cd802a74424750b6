"""Which layers an adapter stands on, and how large it is, from the names and shapes of weights alone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from rayrlhf.errors import ConfigError
from rayrlhf.models.peft_config import PeftConfig

Shapes = Mapping[str, tuple[int, ...]]
_IN_A_BLOCK = re.compile(r"\.\d+\.")  # model.layers.0.mlp.up_proj, transformer.h.0.attn.c_attn
# keys, values and the input of the feed-forward layer's last product, as Llama's kin and GPT-2 name them
_IA3_DEFAULTS = (("k_proj", "v_proj", "mlp.down_proj"), ("attn.c_attn", "mlp.c_proj"))


def linear_layers(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The linear layers inside a model's numbered blocks: their names, and the shapes of their weights."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and _IN_A_BLOCK.search(name)
    }


def adapted_layers(config: PeftConfig, shapes: Shapes, key: str = "peft") -> dict[str, tuple[int, ...]]:
    """The linear layers that `config` adapts in a model with weights of these `shapes`, as `linear_layers`.

    Raises ConfigError, which calls the configuration `key`, for a target that the model has not, naming
    those it has.
    """
    layers = linear_layers(shapes)
    known = sorted({_last(name) for name in layers})
    if not known:
        raise ConfigError(f"{key}: the model's weights hold no linear layer in numbered blocks, so none can be adapted")
    targets = config.target_modules or _default(config, layers, known, key)
    for target in targets:
        if not any(_is(target, name) for name in layers):
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"{key}.target_modules: the model has no linear layer {target!r}; {hint}There are {', '.join(known)}"
            )
    return {name: shape for name, shape in layers.items() if any(_is(target, name) for target in targets)}


def adapter_size(config: PeftConfig | None, shapes: Shapes, key: str = "peft") -> int | None:
    """Parameters of the adapter (ia3: counted by the larger side of each layer; virtual tokens: 0, they are
    few); None without one.

    Raises ConfigError as `adapted_layers`."""
    if config is None or not config.is_mergeable:
        return None if config is None else 0
    sizes = adapted_layers(config, shapes, key).values()
    return sum(max(size) if config.kind == "ia3" else config.rank * sum(size) for size in sizes)


def endings(layers: Iterable[str], parts: int) -> list[str]:
    """The last `parts` parts of each layer's name, each once: model.layers.0.mlp.up_proj -> mlp.up_proj."""
    return sorted({".".join(name.split(".")[-parts:]) for name in layers})


def _default(config: PeftConfig, layers: Iterable[str], known: list[str], key: str) -> Iterable[str]:
    if config.kind == "lora":
        return known
    for targets in _IA3_DEFAULTS:
        if all(any(_is(target, name) for name in layers) for target in targets):
            return targets
    raise ConfigError(
        f"{key}.kind=ia3 does not know which layers of this model are keys, values and the feed-forward layer's last: "
        f"set {key}.target_modules; there are {', '.join(known)}"
    )


def _is(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _last(name: str) -> str:
    return name.rpartition(".")[2]

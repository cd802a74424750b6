"""Adapters of the peft library inside plain transformers models.

LoRA's and IA3's layers take the places of the linear layers they adapt, so the model keeps its class and
its forward passes.  Whoever reads its weights by `whole_weights` sees a plain model under the base
model's names, with the adapter merged in: that is what is saved and published.

Virtual tokens (prompt and prefix tuning) cannot be merged: peft's model stands around the plain one, whose
weights are those it started with.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rayrlhf.errors import ModelError
from rayrlhf.models.peft_config import PeftConfig
from rayrlhf.models.targets import adapted_layers, endings

_ADAPTER = "default"  # the name that peft gives the only adapter, and leaves out in its files
_FILED = "base_model.model."  # before every name in peft's files
_BASE = ".base_layer."  # between the name of an adapted layer and its own weight's


def with_adapter(model: Any, config: PeftConfig | None) -> Any:
    """`model` with a fresh adapter (drawn from torch's global generator), which alone is trainable from
    now on, beside a scalar model's head; `model` as it is where `config` is None.

    Fresh LoRA and IA3 change no output.  Raises ConfigError for targets that the model has not.
    """
    if config is None:
        return model
    from peft import get_peft_model, inject_adapter_in_model

    if not config.is_mergeable:
        return get_peft_model(model, _virtual_tokens_config(config))
    layers = adapted_layers(config, {name: tuple(p.shape) for name, p in model.named_parameters()})
    inject_adapter_in_model(_library_config(config, model, list(layers)), model, _ADAPTER)
    for parameter in _head(model).values():
        parameter.requires_grad_(True)
    return model


def _library_config(config: PeftConfig, model: Any, layers: list[str]) -> Any:
    """peft's configuration of an adapter on `layers`."""
    from peft import IA3Config, LoraConfig
    from transformers.pytorch_utils import Conv1D

    shared: dict[str, Any] = {
        "base_model_name_or_path": model.name_or_path,
        "task_type": "SEQ_CLS" if _head(model) else "CAUSAL_LM",  # with SEQ_CLS peft loads the head too
        # GPT-2's Conv1D stores [in, out]
        "fan_in_fan_out": any(isinstance(model.get_submodule(name), Conv1D) for name in layers),
    }
    if config.kind == "ia3":
        # two parts of each name, since in GPT-2 a `c_proj` is of the attention or of the feed-forward layer
        targets = endings(layers, 2)
        of_inputs = [target for target in targets if target.startswith("mlp.")]
        return IA3Config(target_modules=targets, feedforward_modules=of_inputs, **shared)
    return LoraConfig(
        target_modules=endings(layers, 2),
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=config.dropout,
        **shared,
    )


def _virtual_tokens_config(config: PeftConfig) -> Any:
    """peft's configuration of virtual tokens."""
    from peft import PrefixTuningConfig, PromptTuningConfig

    shared: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": config.num_virtual_tokens}
    if config.kind == "prefix_tuning":
        return PrefixTuningConfig(**shared)
    # Lester et al. 2021, section 3.2: starting from embeddings of the vocabulary learns better than from noise
    return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **shared)


def with_virtual_tokens(model: Any, folder: str | None) -> tuple[Any, int]:
    """(`model` with the tuned prompt or prefix that `save_adapter` wrote to `folder`, how many tokens of its
    context that takes); the model as it is where `folder` is None."""
    if folder is None:
        return model, 0
    from peft import PeftModel

    if not os.path.isfile(os.path.join(folder, "adapter_model.safetensors")):  # peft would read a pickle
        raise ModelError(f"{folder} has no adapter_model.safetensors: copy the stage again, or train it again")
    # peft leaves out the positions that generation gives it; without padding they are 0, 1, 2, ... anyway
    warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
    whole: Any = PeftModel.from_pretrained(model, folder)
    return whole, whole.active_peft_config.num_virtual_tokens


def plain_model(model: Any) -> Any:
    """The transformers model in `model`: itself, or the one that peft's model stands around."""
    return model.get_base_model() if hasattr(model, "prompt_encoder") else model


def has_adapter(model: Any) -> bool:
    """Whether `with_adapter` put one in."""
    return getattr(model, "peft_config", None) is not None


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The model as it was before training; not while gradients are computed."""
    layers = _adapted(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@dataclass(frozen=True)
class Weight:
    """A weight as the plain model has it.

    `parameters` are what `whole` makes it of (a new tensor); under ZeRO 3 they must be gathered first.
    The first is the base model's, of the same size.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    whole: Callable[[], Tensor]


def whole_weights(model: Any) -> list[Weight]:
    """Every weight of the plain model, in order of `named_parameters`, tied ones once."""
    model = plain_model(model)
    layers = _adapted(model)
    own = {id(p) for layer in layers.values() for p in _parameters(layer).values()}
    found = []
    for name, parameter in model.named_parameters():
        layer_name, is_adapted, leaf = name.rpartition(_BASE)
        if is_adapted:
            layer = layers[layer_name]
            made_of = (parameter, *_parameters(layer).values())
            found.append(Weight(f"{layer_name}.{leaf}", made_of, partial(_merged, layer, leaf)))
        elif id(parameter) not in own:
            found.append(Weight(name, (parameter,), partial(_copy, parameter)))
    return found


def _copy(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().clone()


@torch.no_grad()
def _merged(layer: Any, leaf: str) -> Tensor:
    """The adapted layer's `leaf` (weight or bias) of a plain layer that gives the same outputs."""
    base = getattr(layer.get_base_layer(), leaf).detach()
    if hasattr(layer, "lora_A"):  # W + alpha / rank * B A
        return base + layer.get_delta_weight(_ADAPTER) if leaf == "weight" else base.clone()
    factor = layer.ia3_l[_ADAPTER].detach()  # [out, 1] of outputs, [1, in] of inputs
    if leaf == "bias":
        return base.clone() if layer.is_feedforward else base * factor.flatten()
    return base * (factor.T if layer.fan_in_fan_out else factor)


def adapter_parameters(model: Any) -> dict[str, nn.Parameter]:
    """What is trained, by the names in peft's files: the adapter, and a scalar model's head."""
    if hasattr(model, "prompt_encoder"):
        return {"prompt_embeddings": model.prompt_encoder[_ADAPTER].embedding.weight}
    found = dict(_head(model))
    for layer_name, layer in _adapted(model).items():
        found |= {f"{layer_name}.{name}": parameter for name, parameter in _parameters(layer).items()}
    return {f"{_FILED}{name.replace(f'.{_ADAPTER}', '')}": p for name, p in found.items()}


def plain_name(name: str) -> str:
    """What the plain model would call a parameter of `adapter_parameters`."""
    return name.removeprefix(_FILED)


def borrowed_parameters(model: Any) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """(layer, parameter) where the layer's forward reads a parameter of a container without a forward: IA3's
    factors.  ZeRO 3 gathers what a module owns when its forward begins, and must be told of these."""
    for layer in _adapted(model).values():
        for parameter in getattr(layer, "ia3_l", {}).values():
            yield layer, parameter


def save_adapter(model: Any, weights: dict[str, Tensor], folder: str) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained(base model, folder)` loads; `weights` are those of
    `adapter_parameters`, gathered."""
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    dataclasses.replace(model.peft_config[_ADAPTER], inference_mode=True).save_pretrained(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def _adapted(model: Any) -> dict[str, Any]:
    """The model's adapted layers by their names in the plain model."""
    if not has_adapter(model):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def _parameters(layer: Any) -> dict[str, nn.Parameter]:
    """An adapted layer's own parameters."""
    return {name: p for name, p in layer.named_parameters() if not name.startswith(_BASE[1:])}


def _head(model: Any) -> dict[str, nn.Parameter]:
    """The head of a scalar model; nothing for a causal LM."""
    head = getattr(model, "score", None)
    return {} if head is None else {f"score.{name}": p for name, p in head.named_parameters()}

"""Causal language models and tokenizers in Hugging Face folders: load, make, check, save."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rayrlhf.errors import ModelError
from rayrlhf.models.headers import tensor_shapes
from rayrlhf.models.pretrained import model_of, tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rayrlhf.models.config import ModelConfig

_PAD = "<|pad|>"
# how the classes end that AutoModelForCausalLM and AutoModelForSequenceClassification load
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "WithLMHead", "ForConditionalGeneration", "ForSequenceClassification")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def has_tokenizer(folder: str) -> bool:
    """Whether `folder` is a local folder that holds a tokenizer."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in _TOKENIZER_FILES)


def check_tokenizer(folder: str) -> None:
    """Raise ModelError when `folder` holds no tokenizer; reads file names only."""
    if not has_tokenizer(folder):
        found = sorted(os.listdir(folder)) if os.path.isdir(folder) else "no such folder"
        raise ModelError(
            f"{folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}; found: {found}). "
            "Save the model's tokenizer into the folder with tokenizer.save_pretrained(folder)."
        )


def check_folder(folder: str) -> int:
    """Check that `folder` has a tokenizer, config.json and weights, without importing torch models.

    Returns the model's context in tokens.  Raises ModelError with what is missing, and for weights that are not whole
    or of another vocabulary than config.json says.
    """
    check_tokenizer(folder)
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise ModelError(f"{folder} has no config.json: it is not a Hugging Face model folder")
    names = os.listdir(folder)
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        if pickles:
            raise ModelError(
                f"{folder} has its weights in {pickles[0]} alone: that is a pickle, and reading one may run code that "
                "is hidden in it. Where you trust who made it, convert it once with plain transformers: "
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
            )
        raise ModelError(f"{folder} has no weights (*.safetensors); found: {sorted(names)}")
    config = _config(folder)
    context = config.get("max_position_embeddings") or config.get("n_positions")
    if not context:
        raise ModelError(
            f"{path} states neither max_position_embeddings nor n_positions, so the longest sequence is unknown: "
            "add max_position_embeddings to it"
        )
    if not isinstance(context, int):
        raise ModelError(f"{path} has the context {context!r}, which is no number of tokens: copy the model again")
    if any(name.endswith(".safetensors") for name in names):
        _check_vocabulary(folder, config)
    return context


def _check_vocabulary(folder: str, config: dict[str, Any]) -> None:
    said = config.get("vocab_size"), config.get("hidden_size") or config.get("n_embd")
    own_width = "word_embed_proj_dim" in config or "embedding_size" in config  # narrower embeddings than states
    for name, shape in tensor_shapes(folder).items():
        if not name.endswith(("embed_tokens.weight", "wte.weight")) or None in said or len(shape) != 2:
            continue
        if shape[0] != said[0] or (shape[1] != said[1] and not own_width):
            raise ModelError(
                f"{folder} has weights of another model than its config.json: {name} is {shape[0]} x {shape[1]}, "
                f"config.json has vocab_size={said[0]} and a width of {said[1]}. Copy the model again"
            )


def check_known(folder: str, what: str) -> int:
    """`check_folder`, and ModelError when the model of `what` (a key and its value) cannot be loaded."""
    context, config, name = check_folder(folder), _config(folder), architecture(folder)
    if config.get("is_encoder_decoder") or (name and not any(end in name for end in _LANGUAGE_MODELS)):
        raise ModelError(
            f"{what} holds a {name or 'model with an encoder'}, which is no causal language model: give one whose "
            "class is ...ForCausalLM"
        )
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if str(config.get("model_type")) not in CONFIG_MAPPING_NAMES:
        from transformers import __version__

        raise ModelError(
            f"{what} is of model_type {config.get('model_type')!r} ({name}), which transformers {__version__} does not "
            "know: give a model of another architecture, or save it with this version"
        )
    return context


def architecture(folder: str) -> str:
    """The class of a Hugging Face folder's model, such as LlamaForCausalLM; "" where it says none."""
    found = _config(folder).get("architectures") or [""]
    return str(found[0] if isinstance(found, list) else found)


def check_writes(folder: str, what: str) -> int:
    """`check_known`, and ModelError when the model of `what` (a key and its value) is a reward model."""
    context = check_known(folder, what)
    if "SequenceClassification" in architecture(folder):
        raise ModelError(
            f"{what} holds a reward model ({architecture(folder)}), which scores texts and writes none: "
            "give an SFT or PPO stage"
        )
    return context


def check_scores(folder: str, what: str) -> int:
    """`check_known`, and ModelError when the model of `what` is no reward model: its head would be random."""
    context = check_known(folder, what)
    if "SequenceClassification" not in architecture(folder):
        raise ModelError(f"{what} holds a {architecture(folder)}, which gives no scores: give a reward model's stage")
    for name, shape in tensor_shapes(folder).items():
        if name.endswith("score.weight") and shape[0] != 1:
            raise ModelError(
                f"{what} gives {shape[0]} numbers for a text ({name}), and a score is one: give a model with "
                "num_labels=1"
            )
    return context


def _config(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): copy the model again") from error


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `folder`, with a pad token (the end token where it has none of its own).

    Raises ModelError when there is none, when it is broken, has no end token, or more tokens than the model beside it.
    """
    check_tokenizer(folder)
    try:
        tokenizer = tokenizer_of(folder)
    except ModelError:
        raise
    except Exception as error:  # each kind of tokenizer raises what it likes, Rust's a plain Exception
        told = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(f"the tokenizer of {folder} cannot be read ({told}): copy its files again") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {folder} has no eos token, so no response could ever end: set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    _check_embedded(folder, tokenizer)
    return tokenizer


def _check_embedded(folder: str, tokenizer: Any) -> None:
    """ModelError for more tokens than the model has embeddings of.  A reward model's padding (`with_pad_apart`) has
    none, and needs none."""
    if not os.path.isfile(os.path.join(folder, "config.json")) or "SequenceClassification" in architecture(folder):
        return
    size = _config(folder).get("vocab_size")
    if isinstance(size, int) and len(tokenizer) > size:
        raise ModelError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens, and the model beside it embeddings of {size}: "
            "give the model its own tokenizer, or enlarge it with resize_token_embeddings"
        )


def with_pad_apart(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer`, or a copy of it whose pad token no text ends with: the start token, or a new one.

    Plain transformers reads a sequence's score from its last token that is not the pad token: with the end
    token for padding, from the one before the end.
    """
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return tokenizer
    apart = copy.deepcopy(tokenizer)
    if apart.bos_token_id not in (None, apart.eos_token_id):
        apart.pad_token = apart.bos_token
    else:
        apart.add_special_tokens({"pad_token": _PAD})
    return apart


def vocabulary_size(folder: str) -> int:
    """Number of tokens of the tokenizer in `folder`."""
    return len(load_tokenizer(folder))


def load_causal_lm(folder: str, dtype: str = "float32") -> PreTrainedModel:
    """The causal LM of `folder`, weights in `dtype`, dropout off."""
    from transformers import AutoModelForCausalLM

    check_known(folder, folder)
    try:
        model = model_of(AutoModelForCausalLM, folder, dtype=getattr(torch, dtype))
    except ModelError:
        raise
    except Exception as error:  # each architecture raises what it likes where weights and config.json disagree
        raise ModelError(f"the model of {folder} cannot be loaded: {error}") from error
    return without_dropout(model)


def new_llama(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Llama with random weights (drawn from torch's global generator) for `tokenizer`'s vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.intermediate,
            max_position_embeddings=config.context,
            tie_word_embeddings=config.tied,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def set_end(model: Any, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str] = ()) -> None:
    """Let a model that generates also end at the tokenizer's end token, at the one after an answer of the chat
    template, and at `stop_strings`: vLLM's server knows ends from generation_config.json alone.  Nothing changes
    where all are known."""
    from rayrlhf.data.conversation import end_of_turn_id

    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    former = generation.eos_token_id
    known = [token for token in (former if isinstance(former, list) else [former]) if token is not None]
    new = [token for token in (tokenizer.eos_token_id, end_of_turn_id(tokenizer)) if token not in (None, *known)]
    if new:
        generation.eos_token_id = list(dict.fromkeys([*new, *known]))
    texts = list(dict.fromkeys([*_listed(generation.stop_strings), *stop_strings]))
    if texts:
        generation.stop_strings = texts


def stop_strings(folder: str) -> list[str]:
    """Texts that end an answer of the model in `folder`: `stop_strings` of its generation_config.json."""
    from transformers import GenerationConfig

    try:
        return _listed(GenerationConfig.from_pretrained(folder).stop_strings)
    except OSError:  # the file is optional
        return []


def _listed(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or [])


def without_dropout(model: Any) -> Any:
    """The model with every dropout at 0.

    The numbers must not depend on how a minibatch is split, and the ratio of the first PPO
    minibatch is 1 only without dropout.  The saved config keeps the model's own rates.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def save(
    model: Any, tokenizer: PreTrainedTokenizerBase, folder: str, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write a Hugging Face folder: safetensors, config, tokenizer and chat template.

    `state_dict` gives the weights where the model's own are partitioned (ZeRO 3).  A model that scores gets
    `with_pad_apart(tokenizer)`.
    """
    if hasattr(model, "score"):
        tokenizer = with_pad_apart(tokenizer)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder, state_dict=state_dict)
    tokenizer.save_pretrained(folder)

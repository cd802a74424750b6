"""Shared fixtures: tiny random models of three architectures, and one Ray for the whole session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Before torch and Ray are imported: their processes inherit what stands here.
os.environ.update(
    OMP_NUM_THREADS="1",
    RAY_USAGE_STATS_ENABLED="0",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

# Generated examples are the same in every run, and no slow moment of the machine fails one.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

ROOT = str(Path(__file__).parents[1])
KINDS = ("llama", "qwen3", "gpt2")
VOCAB = 259  # the 256 bytes, <pad>, <s>, </s>
CONTEXT = 128
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first; then, as they share one Ray that stays up, those on `ray_local`; slow ones last."""

    def cost(item: pytest.Item) -> int:
        if item.get_closest_marker("slow"):
            return 2
        return int("ray_local" in getattr(item, "fixturenames", ()))

    items.sort(key=cost)  # stable: the order within a file stays


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`tiny_model("llama" | "qwen3" | "gpt2")` -> a Hugging Face folder with random weights.

    2 layers, hidden 64 in heads of 32 (the least vLLM's CPU attention takes), context 128, a byte
    tokenizer of 259 tokens with a chat template; qwen3 ties its embeddings.
    """
    folders: dict[str, str] = {}

    def make(kind: str) -> str:
        if kind not in folders:
            folders[kind] = str(_write_model(kind, tmp_path_factory.mktemp(f"tiny-{kind}")))
        return folders[kind]

    return make


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray with 4 CPUs for the whole session; its tests kill the actors they start."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        logging_level="warning",
        runtime_env={"env_vars": {"PYTHONPATH": ROOT}},  # actors find what tests define by its module's name
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def foreign_reward_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model of random weights with whole words for tokens and roles in its chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from rayrlhf.data import tokenizer
    from rayrlhf.data.config import TokenizerConfig

    words = [f"number {n} the movie was good and bad" for n in range(24)]
    made = tokenizer.train(lambda: [words], TokenizerConfig(kind="words", vocab_size=320, num_pieces=270, min_count=1))
    made.chat_template = (
        "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    folder = str(tmp_path_factory.mktemp("foreign-reward"))
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    size |= {"vocab_size": len(made), "max_position_embeddings": 100}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForSequenceClassification(LlamaConfig(initializer_range=0.2, num_labels=1, pad_token_id=0, **size))
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def foreign_model_folder(foreign_reward_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A language model with the tokenizer of `foreign_reward_folder`."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(foreign_reward_folder)
    folder = str(tmp_path_factory.mktemp("foreign-model"))
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """One token a byte, with distinct pad, bos and eos, and a chat template that concatenates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, "<pad>", "<s>", "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _write_model(kind: str, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = byte_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_config(kind, tokenizer), dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(kind: str, tokenizer: Any) -> PretrainedConfig:
    from transformers import GPT2Config, LlamaConfig, Qwen3Config

    shared: dict[str, Any] = {
        "vocab_size": VOCAB,
        "initializer_range": 0.1,  # far enough from uniform that a missed update or a wrong shift shows
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if kind == "gpt2":
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(n_layer=2, n_embd=64, n_head=2, n_positions=CONTEXT, **no_dropout, **shared)
    shape = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT,
    }
    classes = {"llama": LlamaConfig, "qwen3": Qwen3Config}
    if kind not in classes:
        raise ValueError(f"no tiny model of kind {kind!r}; there are {KINDS}")
    return classes[kind](tie_word_embeddings=kind == "qwen3", **shape, **shared)

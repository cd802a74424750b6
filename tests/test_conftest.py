"""The tiny models are what the tests that use them take them for."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "héllo, wörld \n 你好"


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_tiny_model_loads_and_its_tokenizer_loses_nothing(tiny_model, kind):
    folder = tiny_model(kind)
    assert tiny_model(kind) == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert len(ids) == len(TEXT.encode()) and tokenizer.decode(ids) == TEXT
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.config.vocab_size == len(tokenizer) == 259
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (kind in ("qwen3", "gpt2"))
    probabilities = model(torch.tensor([ids])).logits.softmax(-1)
    assert probabilities.max() > 3 / 259  # far from uniform


def test_the_template_concatenates_and_ends_answers(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("llama"))
    messages = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": " c"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s>a b c</s>"
    assert tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True) == "<s>a b"

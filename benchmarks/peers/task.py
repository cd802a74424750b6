"""The task that both sides are given: movie snippets, a tokenizer, and tiny Llamas of random weights.

    FOLDER/sft.jsonl      {"prompt", "completion"}: a snippet's first words and the rest
    FOLDER/pairs.jsonl    {"prompt": "", "chosen", "rejected"}: two snippets that people rated differently
    FOLDER/dpo.jsonl      {"prompt", "chosen", "rejected"}: a snippet's first words, its rest and another's
    FOLDER/prompts.jsonl  {"prompt"}
    FOLDER/model          4 layers, hidden 256, a BPE of 4,096: 4.2 million parameters
    FOLDER/scorer         the same with a scalar head

Everything follows from the snippets, so it is the same each time.
"""

from __future__ import annotations

import json
from pathlib import Path

MAX_TOKENS = 128  # of a text, on both sides
MAX_NEW_TOKENS = 64
PPO_EPOCHS = 4  # TRL's default; ours is 2
ROWS = 3200  # 100 batches of 32
SEED = 0


def make(folder: Path) -> None:
    """Write it all, unless it is there."""
    done = folder / "done"
    if done.exists():
        return
    import torch

    from rayrlhf.data import demo, fetch, tokenizer
    from rayrlhf.data.config import SnippetsConfig, TokenizerConfig
    from rayrlhf.models import causal_lm, scalar
    from rayrlhf.models.config import ModelConfig

    folder.mkdir(parents=True, exist_ok=True)
    lines = fetch.fetch().read_text("utf-8-sig", errors="replace").splitlines()
    rated = [(demo.normal_form(row["text"]), row["rating"]) for row in map(demo.parse, lines)]
    texts = [text for text, _ in rated]
    cut = [row for row in (demo.prompt_completion(text, SnippetsConfig()) for text in texts) if row]
    pairs = demo.pairs(rated, min_difference=1.0, pairs_per_text=1)
    others = cut[1:] + cut[:1]
    rows = {
        "sft": cut,
        "pairs": [{"prompt": "", "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs],
        "dpo": [
            {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"]}
            for one, other in zip(cut, others, strict=True)
        ],
        "prompts": [{"prompt": prompt} for prompt in dict.fromkeys(row["prompt"] for row in cut)],
    }
    for name, some in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some[:ROWS]))
    words = tokenizer.train(lambda: iter([texts]), TokenizerConfig(vocab_size=4096, model_max_length=256))
    words.chat_template = None  # prompt and completion are joined as they are, on both sides
    torch.manual_seed(SEED)
    model = causal_lm.new_llama(
        ModelConfig(hidden=256, layers=4, heads=4, kv_heads=4, intermediate=688, context=256), words
    )
    causal_lm.save(model, words, str(folder / "model"))
    scorer = scalar.load_scalar(str(folder / "model"))
    scorer.save_pretrained(folder / "scorer")
    words.save_pretrained(folder / "scorer")
    done.touch()

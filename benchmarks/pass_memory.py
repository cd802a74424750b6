"""Memory of one pass through a model beside its logits: `python -m benchmarks.pass_memory`.

Each case in a process of its own, with what `cluster.bring_up` sets for an actor: a Llama of 4 layers and a vocabulary
of 32,768 takes passes of 30 to 32 rows of 128 tokens, with gradients (log-probs and entropy, as a policy learns) or
without (as a reference judges).  Of what the process's peak grew by, the plan's estimate for the layers is taken off
(`cluster/memory.py`); the rest is told in copies of [tokens, vocabulary] in float32, which differ between runs.  Prints
a line a case and writes benchmarks/results/pass-memory-DATE.json.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.record_demo import cpu_model
from cluster import memory
from cluster.bring_up import ENVIRONMENT
from rayrlhf.environment import peak_memory

VOCABULARY, LAYERS, ROWS, LENGTH = 32_768, 4, 32, 128
HIDDEN = (64, 256)
PRECISIONS = ("float32", "bf16")


def measured(hidden: int, precision: str, has_gradients: bool) -> dict[str, Any]:
    """One case, in this process: GiB that its peak grew by, GiB of one copy of the logits, copies."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rayrlhf.algorithms.logprobs import chosen_logprobs, chosen_logprobs_and_entropy
    from rayrlhf.models.forward import chosen_logits
    from rayrlhf.training.config import EngineConfig

    shape: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": hidden * 5 // 2}
    shape |= {"vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": LAYERS}
    model = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **shape))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)

    def take(rows: int) -> None:
        tokens, lengths = torch.randint(VOCABULARY, (rows, LENGTH)), torch.full((rows,), LENGTH)
        chosen = torch.ones(rows, LENGTH, dtype=torch.bool)
        chosen[:, 0] = False
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = chosen_logits(model, tokens, lengths, chosen)
            if has_gradients:
                logprobs, entropy = chosen_logprobs_and_entropy(logits, tokens[chosen])
                (logprobs.mean() + entropy.mean()).backward()
            else:
                chosen_logprobs(logits, tokens[chosen])

    with torch.set_grad_enabled(has_gradients):
        take(1)
        before = peak_memory()["memory_gib"]
        for number in range(6):
            take(ROWS - number % 3)
    grew = peak_memory()["memory_gib"] - before
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    tokens = ROWS * LENGTH
    if has_gradients:
        engine = EngineConfig.model_validate({"precision": precision})
        layers = memory.trained(shapes, engine, ranks=1, train_tokens=tokens, has_logits=False).activations
    else:
        layers = memory.frozen(shapes, tokens, precision, has_logits=False).activations
    copy = 4 * tokens * VOCABULARY / 2**30
    case = {"hidden": hidden, "precision": precision, "gradients": has_gradients}
    return case | {"grew_gib": grew, "copy_gib": copy, "copies": (grew - layers) / copy}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pass_memory")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args().case
    if given:
        print(json.dumps(measured(*json.loads(given))))
        return
    found = []
    for case in itertools.product(HIDDEN, PRECISIONS, (True, False)):
        command = [sys.executable, "-m", "benchmarks.pass_memory", "--case", json.dumps(case)]
        answer = subprocess.run(command, env=ENVIRONMENT | os.environ, capture_output=True, text=True, check=True)
        found.append(json.loads(answer.stdout.splitlines()[-1]))
        numbers = {key: value for key, value in found[-1].items() if key != "precision"}
        print(case[1], *(f"{key} {value:.3g}" for key, value in numbers.items()), flush=True)
    date = datetime.date.today().isoformat()
    path = Path(__file__).parent / "results" / f"pass-memory-{date}.json"
    machine = {"cpu": cpu_model(), "cores": os.cpu_count()}
    result = {"date": date, "command": "python -m benchmarks.pass_memory", "machine": machine, "cases": found}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

"""A small corpus with known flaws, and what cleaning should make of it; also run by two_nodes.py."""

import json
import random
from pathlib import Path

from pydantic import TypeAdapter

from rayrlhf.data.cleaning.config import Step

ENGLISH = (
    "the old house stood near a quiet river where children played and farmers came with their carts every market day "
    "to sell apples grain wool honey tools and stories about kings who had ruled that green valley before any road was "
    "built"
).split()
CHINESE = (
    "春天的早晨老人沿着河边慢慢散步看见孩子们在树下读书唱歌商店门口有人卖水果蔬菜茶叶和手工做的木头玩具远处山上飘着白云"
)

STEPS = [
    {"kind": "normalise"},
    {"kind": "length", "min_chars": 20},
    {"kind": "exact_duplicates"},
    {"kind": "privacy"},
    {"kind": "near_duplicates", "threshold": 0.7},
    {"kind": "unit_duplicates", "min_chars": 30},
]


def steps(given: list[dict]) -> tuple[Step, ...]:
    return TypeAdapter(tuple[Step, ...]).validate_python(given)


def sentence(draw: random.Random, is_chinese: bool) -> str:
    if is_chinese:
        return "".join(draw.choices(CHINESE, k=draw.randint(18, 30))) + "。"
    return " ".join(draw.choices(ENGLISH, k=draw.randint(9, 16))).capitalize() + ". "


def corpus(num_texts: int = 300, seed: int = 0) -> dict[str, list[str]]:
    """Texts by what they are: unique ones, exact copies, near copies, boilerplate, short ones."""
    draw = random.Random(seed)
    unique = ["".join(sentence(draw, n % 3 == 0) for _ in range(12)).strip() for n in range(num_texts)]
    near = []
    for text in unique[:40]:
        cut = draw.randrange(len(text) // 2)
        near.append(text[:cut] + ("changed" if text.isascii() else "改") + text[cut + 7 :])
    footer = "Subscribe to our newsletter to get the best offers every week!"
    return {
        "unique": unique,
        "exact": [f"  {text}  " for text in unique[40:70]],
        "near": near,
        "boilerplate": [f"{sentence(draw, False)}{sentence(draw, False)}{footer}" for _ in range(20)],
        "short": ["too short", "太短了"],
    }


def write(folder: Path, num_files: int = 3, **keys: int) -> dict[str, list[str]]:
    """The corpus as JSONL, shuffled over some files."""
    made = corpus(**keys)
    texts = [text for group in made.values() for text in group]
    random.Random(1).shuffle(texts)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts[number::num_files]]
        (folder / f"{number}.jsonl").write_text("".join(lines), encoding="utf-8")
    return made

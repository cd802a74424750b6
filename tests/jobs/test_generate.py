"""`rayrlhf generate`: answers equal transformers' own, and mistakes are named at once."""

import io
import json
import os
import shutil

import pytest

from jobs import generate
from rayrlhf.errors import ConfigError, ModelError


def greedy(folder: str, prompt: str, max_new_tokens: int) -> str:
    """What plain transformers continues the templated prompt with."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    found = model.generate(**chat, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(found[0, chat["input_ids"].shape[1] :], skip_special_tokens=True)


def test_split() -> None:
    assert generate.split(["runs/a/ppo", "The movie", "seed=3", "was"]) == (
        ["seed=3", "model=runs/a/ppo"],
        ["The movie", "was"],
    )
    assert generate.split(["model=m", "Hello"]) == (["model=m"], ["Hello"])
    assert generate.split(["c.yaml", "--print-config"]) == (["c.yaml", "--print-config"], [])
    # a prompt with an equals sign and spaces is a prompt; a lone word=word needs the dashes
    assert generate.split(["m", "a = b + c", "--", "x=1"]) == (["model=m"], ["a = b + c", "x=1"])


def test_greedy_answers_equal_transformers(tiny_model, capsys) -> None:
    folder = tiny_model("llama")
    capsys.readouterr()  # what making the model printed
    assert generate.main([folder, "The movie", "It", "temperature=0", "max_new_tokens=9"]) == 0
    expected = "".join(f"{prompt}{greedy(folder, prompt, 9)}\n" for prompt in ("The movie", "It"))
    assert capsys.readouterr().out == expected


def test_sampling_follows_the_seed(tiny_model) -> None:
    def answers(**keys) -> list[str]:
        config = generate.GenerateConfig(model=tiny_model("llama"), max_new_tokens=12, **keys)
        return generate.Generator(config).answers("The")

    two = answers(seed=1, num_samples=2)
    assert len(two) == 2 and two[0] != two[1]
    assert answers(seed=1, num_samples=2) == two
    assert answers(seed=2, num_samples=2) != two
    # close to 0 the temperature leaves the likeliest token
    assert answers(seed=5, temperature=1e-4) == answers(seed=6, temperature=0.0)


def test_an_answer_ends_before_a_stop_string(tiny_model, tmp_path) -> None:
    """One that the command line gives, or the model's generation_config.json."""

    def answer(folder: str, **keys) -> str:
        config = generate.GenerateConfig(model=folder, temperature=0.0, max_new_tokens=24, **keys)
        return generate.Generator(config).answers("The movie")[0]

    folder = tiny_model("llama")
    whole = answer(folder)
    place = next(n for n in range(6, 20) if whole[n : n + 2].isascii() and whole.find(whole[n : n + 2]) == n)
    stop = whole[place : place + 2]
    assert answer(folder, stop_strings=("never written", stop)) == whole[:place]
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stop_strings": [stop]}))
    assert answer(str(tmp_path / "model")) == whole[:place]


def test_the_whole_distribution_is_sampled(tiny_model, monkeypatch) -> None:
    """transformers' own default keeps the 50 likeliest tokens; these 259 are nearly alike."""
    config = generate.GenerateConfig(model=tiny_model("llama"), max_new_tokens=1, num_samples=2000, temperature=10.0)
    generator = generate.Generator(config)
    found = []
    monkeypatch.setattr(generator.tokenizer, "batch_decode", lambda rows, **_: found.extend(rows[:, 0].tolist()) or [])
    generator.answers("The")
    assert len(set(found)) > 200


def test_prompts_from_standard_input(tiny_model, capsys, monkeypatch) -> None:
    folder = tiny_model("llama")
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("The movie\n\nIt\n"))
    assert generate.main([folder, "temperature=0", "max_new_tokens=3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The movie") and "\nIt" in out


def test_a_stage_directory(tiny_model, tmp_path, capsys) -> None:
    from rayrlhf.checkpoint import StageWriter

    writer = StageWriter(str(tmp_path / "sft"), 3)
    shutil.copytree(tiny_model("llama"), writer.model_dir, dirs_exist_ok=True)
    writer.finish("sft", {}, {}, {})
    capsys.readouterr()
    for path in (tmp_path / "sft", tmp_path / "sft" / "step_000003"):
        assert generate.main([str(path), "The movie", "temperature=0", "max_new_tokens=4"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_mistakes(tiny_model, tmp_path, capsys) -> None:
    folder = tiny_model("llama")
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    for name in os.listdir(bare):
        if "token" in name:
            os.remove(bare / name)
    scorer = tmp_path / "scorer"
    shutil.copytree(folder, scorer)
    config = json.loads((scorer / "config.json").read_text())
    (scorer / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]}))
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "nowhere"), "x"], "no model at"),
        ([str(tmp_path / "empty"), "x"], "not a finished stage"),
        ([str(bare), "x"], "has no tokenizer"),
        ([str(scorer), "x"], "holds a reward model"),
        ([folder, "x", "max_new_tokens=128"], "context is 128"),
        ([folder, "x", "max_new_token=5"], "max_new_tokens"),
        ([folder, "x", "--fast"], "--fast"),
        (["temperature=1"], "model"),
    ):
        assert generate.main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err and "Traceback" not in captured.err, arguments


def test_errors_are_of_their_kinds(tiny_model, tmp_path) -> None:
    with pytest.raises(ModelError):
        generate.check_generates(str(tmp_path / "nowhere"))
    config = generate.GenerateConfig(model=tiny_model("llama"), max_new_tokens=128)
    with pytest.raises(ConfigError, match="context is 128"):
        generate.Generator(config).answers("x")

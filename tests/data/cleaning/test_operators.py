"""The steps on single rows, by hand, in English and Chinese; every key shows its effect."""

import re
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from rayrlhf.config import Section, load
from rayrlhf.data.cleaning import html, length, links, operators, privacy, repetition
from rayrlhf.data.cleaning.characters import shares
from rayrlhf.data.cleaning.config import CleanConfig, Step
from rayrlhf.data.cleaning.verdict import Dropped
from rayrlhf.data.cleaning.words import lines, sentences, tokens, words
from rayrlhf.errors import ConfigError, DataError, UserError

STEP: TypeAdapter = TypeAdapter(Step)


def run(kind: str, text: str, **keys: object) -> str:
    """What a step makes of a text: the text, or the reason in brackets."""
    found = operators.build(STEP.validate_python({"kind": kind, **keys}))(text)
    return f"[{found.reason}]" if isinstance(found, Dropped) else found


# ---- words and sentences ---------------------------------------------------------------------------


def test_words_of_both_languages() -> None:
    assert words("Don't re-open 3 files, please_now!") == ("Don't", "re-open", "3", "files", "please", "now")
    assert words("我来到北京清华大学。") == ("我", "来到", "北京", "清华大学")
    assert words("用Python写code吧") == ("用", "Python", "写", "code", "吧")
    assert tokens("GPT-4 很强。") == ["gpt", "4", "很", "强"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        (
            "Dr. Smith met J. Doe at 3.14 today. He left.",
            ["Dr. Smith met J. Doe at 3.14 today. ", "He left."],
        ),
        ('He said "No." Then he left.', ['He said "No." ', "Then he left."]),
        ("今天很好。明天呢？“好！”他说。", ["今天很好。", "明天呢？", "“好！”", "他说。"]),
        ("a line\nanother. one", ["a line\n", "another. ", "one"]),
        ("I see a. Then I. Then J. Doe.", ["I see a. ", "Then I. ", "Then J. Doe."]),
        ("Wait... what?", ["Wait... ", "what?"]),
        ("", []),
    ],
)
def test_sentences(text: str, wanted: list[str]) -> None:
    found = sentences(text)
    assert "".join(found) == text
    assert found == wanted
    assert "".join(lines(text)) == text


# ---- repair and form -------------------------------------------------------------------------------


def test_repair() -> None:
    assert run("repair", "schÃ¶n, cafÃ© â€” ä¸\xadæ–‡") == "schön, café — 中文"
    assert run("repair", "a &amp; b") == "a & b"
    assert run("repair", "a &amp; b", unescape_html=False) == "a &amp; b"
    assert run("repair", "“so”") == "“so”"
    assert run("repair", "“so”", uncurl_quotes=True) == '"so"'
    assert run("repair", "中文，ａｂｃ ﬁ") == "中文，ａｂｃ ﬁ", "width and ligatures are not repair"


def test_normalise() -> None:
    assert run("normalise", "cafe\u0301\x00 \t bar\r\n\n\n\nnext \n line ") == "café bar\n\nnext\n line"
    assert run("normalise", "ﬁ ²") == "ﬁ ²" and run("normalise", "ﬁ ²", form="NFKC") == "fi 2"
    assert run("normalise", "a\x07b\ufeff", remove_control=False) == "a\x07b\ufeff"
    assert run("normalise", " a  b ", collapse_spaces=False) == " a  b "
    assert run("normalise", "\u3000a\n\u3000b", full_width="letters") == run(
        "normalise", "\u3000a\n\u3000b", form="NFKC"
    )
    assert run("normalise", "a\u200bb", remove_control=False) == "a\u200bb"
    wide = "ＡＢ１２，你好！"
    assert run("normalise", wide) == wide
    assert run("normalise", wide, full_width="letters") == "AB12，你好！"
    assert run("normalise", wide, full_width="all") == "AB12,你好!"
    assert run("normalise", "一\u3000二", full_width="letters", collapse_spaces=False) == "一 二"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("end of page\x0cNext page", "end of page\nNext page"),
        ("a\rb\x0bc\x85d\u2028e\u2029f\r\ng\x1ch", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("def f(x):  # why\n    if  x:\n\treturn 1  \n   \n\n\n", "def f(x): # why\n    if x:\n\treturn 1"),
        ("  for x in y:\n    a  = 1\n  b = 2", "for x in y:\n  a = 1\nb = 2"),
        ("\n   one  line ", "one line"),
        ("\u3000\u3000第一段。\n\u3000 \u3000第二段，\u3000好。", "第一段。\n第二段， 好。"),
        ("a\n\xa0\u2003\tb", "a\n  \tb"),
        ("via\u200bgra co\xadop\u2060 \u180ex\ufeff", "viagra coop x"),
        ("vi\u200cag\u200dra 购\u200d买か\u200dな", "viagra 购买かな"),
        ("می\u200cشود क्\u200dष 👨\u200d👩\u200d👧 ❤️\u200d🔥", "می\u200cشود क्\u200dष 👨\u200d👩\u200d👧 ❤️\u200d🔥"),
    ],
)
def test_normalise_glues_nothing_and_keeps_what_has_a_meaning(text: str, wanted: str) -> None:
    assert run("normalise", text) == wanted
    assert run("normalise", wanted) == wanted


def test_strip_html() -> None:
    page = "<html><head><title>x</title></head><body><h1>Head</h1><p>One &amp; <b>two</b><br>three</p>"
    page += "<script>if (a < b) alert('x')</script><!-- no --><ul><li>你好</li></ul></body></html>"
    assert run("strip_html", page) == "Head\nOne & two\nthree\n你好"
    for plain in ("if a<b and c>d", "vector<int> x", "mail <EMAIL> &amp; more", "1 < 2"):
        assert run("strip_html", plain) == plain, "no tag of HTML"
    assert run("strip_html", "<p>a <EMAIL> b</p>") == "a <EMAIL> b"
    assert run("strip_html", '<a title="5 > 3" href=x>a</a><!-- <p>no</p> --> <td>b<?php echo 1 ?>') == "a  b"
    assert html.TAG.findall("<div class='a'><foo></div>") == ["<div class='a'>", "</div>"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<html><head><title>x</title><body><p>Text is here</p></body></html>", "Text is here"),
        ("<html><head><title>x</title><script>y</script>\n<p>Text is here</p>", "Text is here"),
        ("In HTML the <head> element holds metadata. <p>Next paragraph.</p>",
         "In HTML the  element holds metadata. \nNext paragraph."),
        ("To embed, use the <object> tag. Then <b>more</b> text", "To embed, use the  tag. Then more text"),
        ("A <script> mentioned, <b>bold</b>, <style>p {}</style> end", "A  mentioned, bold,  end"),
        ("A <head> is said to begin here <title>Shown</title><p>b", "A  is said to begin here \nShown\nb"),
        ("<svg><title>t</title><path d='M1'/></svg> and <b>b</b>", "and b"),
        ("<b>a</b> <!-- never closed", "a <!-- never closed"),
        ("<body><title>shown</title><p>b", "shown\nb"),
        ("<SCRIPT>a</script ><P>b</P>", "b"),
    ],
)  # fmt: skip
def test_strip_html_swallows_no_page(text: str, wanted: str) -> None:
    assert run("strip_html", text) == wanted


# ---- heuristics ------------------------------------------------------------------------------------


def test_language() -> None:
    english = "The committee will meet again next week to discuss the budget of the city."
    chinese = "委员会将于下周再次开会讨论该市的预算问题。"
    german = "Der Ausschuss wird nächste Woche wieder zusammentreten, um den Haushalt zu beraten."
    assert run("language", english) == english and run("language", chinese) == chinese
    assert run("language", german) == "[language]"
    assert run("language", german, languages=["de"]) == german
    assert run("language", chinese, languages=["en"]) == "[language]"
    assert run("language", "This is English") == "This is English"
    assert run("language", "This is English", min_confidence=0.9) == "[language_unsure]"
    for text in ("北京时间2023年10月1日，国庆节。", "机器学习", "你好 world hello", "我係香港人"):
        assert run("language", text) == text, "no dialect, and where it is one it is Chinese"
        assert run("language", text, languages=["en"]) == "[language]"
    assert run("language", "佢哋喺香港食飯", languages=["yue"]) == "佢哋喺香港食飯"
    assert run("language", "今天天气很好，我们去公园", languages=["yue"]) == "[language]"
    for text in ("Solve x^2 + 3x + 2 = 0.", "Guten Tag"):
        assert run("language", text) == text, "a guess near chance is none"
        assert run("language", text, min_drop_confidence=0) == "[language]"
        assert run("language", text, min_confidence=0.5) == "[language_unsure]"
    assert run("language", german, min_drop_confidence=0.9999) == german
    with pytest.raises(ConfigError, match="no language xx; known are ace af am"):
        run("language", "", languages=["xx"])


def test_length() -> None:
    assert run("length", "abc", min_chars=3, max_chars=3) == "abc"
    assert run("length", "abc", min_chars=4) == "[too_short]" and run("length", "abc", max_chars=2) == "[too_long]"
    assert run("length", "a b c", min_words=4) == "[too_few_words]"
    assert run("length", "a b c", max_words=2) == "[too_many_words]"
    assert run("length", "我来到北京清华大学", min_words=5) == "[too_few_words]", "four words, nine characters"
    assert run("length", "我来到北京清华大学", min_words=4) == "我来到北京清华大学"
    assert length.mean_word("ab abcd 北京") == 3.0 and length.mean_word("北京") is None
    assert run("length", "ab abcd", min_mean_word=3.5) == "[short_words]"
    assert run("length", "ab abcd", max_mean_word=2.5) == "[long_words]"
    assert run("length", "北京", min_mean_word=3.5) == "北京", "Chinese words are short"
    with pytest.raises(ValueError, match="min_words=3 is above max_words=2"):
        run("length", "", min_words=3, max_words=2)


def test_characters() -> None:
    assert shares("ab1, $") == {"punctuation": 0.2, "symbol": 0.2, "digit": 0.2, "letter": 0.4}
    assert shares("你好，１") == {"punctuation": 0.25, "symbol": 0.0, "digit": 0.25, "letter": 0.5}
    assert shares(" ") == {"punctuation": 0.0, "symbol": 0.0, "digit": 0.0, "letter": 0.0}
    free = dict.fromkeys(
        ("max_punctuation", "max_symbols", "max_digits", "min_letter_words", "max_bullet_lines", "max_ellipsis_lines")
    )
    for key, value, text, reason in (
        ("max_punctuation", 0.3, "a!!!", "punctuation"),
        ("max_punctuation", 0.3, "好。。。", "punctuation"),
        ("max_symbols", 0.1, "ab ###", "symbols"),
        ("max_digits", 0.3, "a 123", "digits"),
        ("min_letter_words", 0.8, "a b 1 2", "letter_words"),
        ("max_bullet_lines", 0.9, "- a\n \n• b\n", "bullet_lines"),
        ("max_ellipsis_lines", 0.3, "a...\nb…\nc", "ellipsis_lines"),
    ):
        assert run("characters", text, **(free | {key: value})) == f"[{reason}]"
        assert run("characters", text, **free) == text, "null is not checked"
    prose = "A plain sentence, with a number such as 42.\n这是一个普通的句子，有标点。"
    assert run("characters", prose) == prose


def test_repetition_by_hand() -> None:
    assert repetition.repeated(["ab", "c", "ab", "ab"]) == (0.5, 4 / 7)
    assert repetition.repeated([]) == (0.0, 0.0)
    abab = ["aa", "b", "aa", "b", "c"]  # 7 characters; "aa b" comes twice: 6 of them
    assert repetition.top_ngram(abab, 2) == 6 / 7
    assert repetition.top_ngram("b c b c aaaa dd aaaa dd".split(), 2) == 12 / 16, "of two as frequent the longest"
    for few in (["a", "b", "c"], ["a"], []):
        assert repetition.top_ngram(few, 2) == 0.0
    assert repetition.duplicate_ngrams([], 2) == repetition.duplicate_ngrams(["a"], 2) == 0.0
    assert repetition.duplicate_ngrams(abab, 2) == 3 / 7, "the second `aa b` alone"
    assert repetition.duplicate_ngrams(["a"] * 4, 2) == 3 / 4, "overlapping ones count a character once"


def test_repetition() -> None:
    free: dict[str, object] = dict.fromkeys(
        ("max_duplicate_lines", "max_duplicate_paragraphs", "max_duplicate_line_chars", "max_duplicate_paragraph_chars")
    )
    free |= {"max_top_ngram": {}, "max_duplicate_ngrams": {}}
    lined, paragraphs = "one\ntwo\none\none", "one\n\none\n\ntwo"
    spam = "buy cheap pills now and here buy cheap pills now and here buy cheap pills now and here"
    chinese = "今天天气真的很好，" * 6
    for key, value, text, reason in (
        ("max_duplicate_lines", 0.3, lined, "duplicate_lines"),
        ("max_duplicate_line_chars", 0.2, lined, "duplicate_line_chars"),
        ("max_duplicate_paragraphs", 0.3, paragraphs, "duplicate_paragraphs"),
        ("max_duplicate_paragraph_chars", 0.2, paragraphs, "duplicate_paragraph_chars"),
        ("max_top_ngram", {2: 0.2}, spam, "top_2_gram"),
        ("max_top_ngram", {2: 0.2}, chinese, "top_2_gram"),
        ("max_duplicate_ngrams", {5: 0.15}, spam, "duplicate_5_grams"),
    ):
        assert run("repetition", text, **(free | {key: value})) == f"[{reason}]"
        assert run("repetition", text, **free) == text
    prose = "The first line of a story.\nThe second, which says more.\n\nAnd so it ends, as stories do."
    assert run("repetition", prose) == prose
    # n-grams are asked from the shortest on, and none may repeat where no shorter one does
    assert run("repetition", spam, **(free | {"max_duplicate_ngrams": {10: 0.1, 4: 0.9}})) == "[duplicate_10_grams]"


def test_stop_words() -> None:
    assert run("stop_words", "The cat sat with me") == "The cat sat with me"
    assert run("stop_words", "cheap pills online") == "[stop_words]"
    assert run("stop_words", "这是我的书") == "这是我的书"
    assert run("stop_words", "手机 电脑 相机") == "[stop_words]"
    assert run("stop_words", "the of x x x x x x", min_share=0.3) == "[stop_word_share]"
    assert run("stop_words", "der die Katze", words=["der", "die"]) == "der die Katze"
    assert run("stop_words", "cheap pills", min_count=0) == "cheap pills"


def test_keywords(tmp_path: Path) -> None:
    assert run("keywords", "Buy Viagra now", words=["viagra"]) == "[keywords]"
    assert run("keywords", "an assassin", words=["ass"]) == "an assassin", "whole words"
    assert run("keywords", "本店提供代开发票服务", words=["代开发票"]) == "[keywords]"
    assert run("keywords", "购买viagra请联系", words=["viagra"]) == "[keywords]", "Chinese letters end a Latin word"
    assert run("keywords", "これはspamです", words=["spam"]) == "[keywords]"
    assert run("keywords", "été spamé spam_x 3spam", words=["spam", "t"]) == "été spamé spam_x 3spam"
    assert run("keywords", "spam spam", words=["spam"], max_matches=2) == "spam spam"
    (tmp_path / "list.txt").write_text("\ufeffclick here\n\n博彩\n", encoding="utf-8")
    path = str(tmp_path / "list.txt")
    assert run("keywords", "Please CLICK HERE", path=path) == "[keywords]"
    assert run("keywords", "澳门博彩", path=path, words=["x"]) == "[keywords]"
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no word"):
        run("keywords", "", path=str(tmp_path / "empty.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        run("keywords", "", path=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="words or a path"):
        run("keywords", "")


def test_links() -> None:
    assert links.URL.findall("See https://a.org/x?y=1, or (www.b.com/z). 见http://c.cn/页。好") == [
        "https://a.org/x?y=1",
        "www.b.com/z",
        "http://c.cn/",
    ]
    assert links.share("http://a.b c", links.URL) == 10 / 12
    many = "http://a.org http://b.org and"
    assert run("links", many) == "[urls]" and run("links", many, max_url_share=None) == many
    markup = "<div><p>x</p></div>&nbsp;"
    assert run("links", markup) == "[html]" and run("links", markup, max_html_share=None) == markup
    prose = "A long enough sentence that names https://a.org once, and then goes on for quite a while."
    assert run("links", prose) == prose


# ---- privacy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("write to jane.doe+x@mail.example.co.uk.", "write to <EMAIL>."),
        ("请联系zhang@example.cn谢谢", "请联系<EMAIL>谢谢"),
        ("a@b, @user, x@y.z9", "a@b, @user, x@y.z9"),
        ("from 192.168.1.254 to fe80::1ff:fe23:4567:890a", "from <IP> to <IP>"),
        ("at ::1, 2001:db8::7: up; [2001:db8::1]:80", "at <IP>, <IP>: up; [<IP>]:80"),
        ("host:fe80::1%eth0 为fd12:3456::1。", "host:<IP>%eth0 为<IP>。"),
        ("::ffff:10.0.0.1, 1:2:3:4:5:6:7:8, 1:2::3", "<IP>, <IP>, <IP>"),
        ("std::vector<int> v; use Foo::bar; a::b", "std::vector<int> v; use Foo::bar; a::b"),
        ("use std::collections::HashMap; dead::beef", "use std::collections::HashMap; dead::beef"),
        ("Time 10::30, a[::1], x[1::2], :: and f()[::1]", "Time 10::30, a[::1], x[1::2], :: and f()[::1]"),
        ("ab::cd::ef, add::bad(fee::1), 00:1b:44:11:3a:b7", "ab::cd::ef, add::bad(fee::1), 00:1b:44:11:3a:b7"),
        ("1:2:3:4:5:6:7:8:9 and 2001:db8::1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9 and 2001:db8::1:2:3:4:5:6:7"),
        ("version 1.2.3.4.5 and 300.1.1.1 at 12:30:45", "version 1.2.3.4.5 and 300.1.1.1 at 12:30:45"),
        ("card 4111 1111 1111 1111 or 4111-1111-1111-1112", "card <CARD> or 4111-1111-1111-1112"),
        ("IBAN DE89 3704 0044 0532 0130 00 is paid", "IBAN <IBAN> is paid"),
        ("GB82WEST12345698765432, GB82WEST12345698765433", "<IBAN>, GB82WEST12345698765433"),
        ("SSN 078-05-1120, not 000-12-3456 or 666-12-3456", "SSN <ID>, not 000-12-3456 or 666-12-3456"),
        ("身份证11010519491231002X，错的110105194912310021", "身份证<ID>，错的110105194912310021"),
        ("call (650) 253-0000 or +44 20 7946 0958", "call <PHONE> or <PHONE>"),
        ("手机13812345678，座机010-62793001", "手机<PHONE>，座机<PHONE>"),
        ("in 2020 and 1999, 12345678 people", "in 2020 and 1999, 12345678 people"),
    ],
)
def test_privacy(text: str, wanted: str) -> None:
    assert run("privacy", text) == wanted


def test_privacy_s_keys() -> None:
    text = "a@b.org 192.168.1.1 4111111111111111 DE89370400440532013000 078-05-1120 (650) 253-0000 http://x.org/y"
    tokens = {name: f"[{name}]" for name in ("email", "ip", "card", "iban", "national_id", "phone", "url")}
    assert run("privacy", text, **tokens) == "[email] [ip] [card] [iban] [national_id] [phone] [url]"
    assert run("privacy", text, **dict.fromkeys(tokens)) == text
    for name, token in tokens.items():
        assert run("privacy", text, **(dict.fromkeys(tokens) | {name: token})).count("[") == 1, name
    assert run("privacy", "(650) 253-0000", phone_regions=["CN"]) == "(650) 253-0000"


def test_phones_in_tables_of_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    import phonenumbers

    table = "".join(f"{n} {n * 7919} {n * n}.5 {n * 104729}\n" for n in range(100, 500))
    dense = f"{table}+1 650 253 0000, (650) 253-0000 13812345678 010-62793001 650.253.0000 111-253-0000\n{table}"
    wanted = f"{table}<PHONE>, <PHONE> <PHONE> <PHONE> <PHONE> 111-253-0000\n{table}"
    with monkeypatch.context() as patched:
        patched.setattr(phonenumbers, "PhoneNumberMatcher", None)  # is not asked
        assert run("privacy", dense, card=None) == wanted
        assert "13812345678" in run("privacy", dense, card=None, phone_regions=["US"])
    prose = "A long text of words with one 650 253 0000 in it. " * 300
    assert "650" not in run("privacy", prose), "there the library looks"


@pytest.mark.parametrize(
    ("kind", "unit", "around"),
    [
        ("sentences", ".", "{}x"),
        ("sentences", ".'\"", "{}x"),
        ("strip_html", "<!--", "<b>{}"),
        ("strip_html", '<a ="', "<b>{}"),
        ("strip_html", "=", "<b><a {}"),
        ("strip_html", " ", "<b>{}x"),
        ("strip_html", "<script>", "<b>{}"),
        ("links", "<!--", "{}"),
        ("links", "=", "<a {}"),
        ("links", "<!doctype", "{}"),
        ("normalise", " ", "{}x"),
        ("normalise", "\n \u3000", "{}x"),
        ("privacy", "a@", "{}"),
        ("privacy", "1:", "{}"),
    ],
)
def test_no_text_takes_the_square_of_its_length(kind: str, unit: str, around: str) -> None:
    """Four times the text takes about four times as long, not sixteen times; what takes no time at all passes."""
    step = sentences if kind == "sentences" else operators.build(STEP.validate_python({"kind": kind}))

    def seconds(size: int) -> float:
        text = around.format(unit * (size // len(unit)))
        start = time.process_time()
        step(text)
        return time.process_time() - start

    for size in (10_000, 50_000):  # the small one first, so that a wrong step does not take minutes
        assert min(seconds(4 * size) for _ in range(2)) < max(0.2, 10 * seconds(size))


def test_checksums_by_hand() -> None:
    assert privacy.luhn("79927398713") and not privacy.luhn("79927398710") and not privacy.luhn("0000000000000000")
    assert privacy.iban_length("DE89370400440532013000 and") == 22
    assert privacy.iban_length("DE88370400440532013000") == 0 and privacy.iban_length("ZZ89370400440532013000") == 0
    assert privacy.resident_number("11010519491231002X") and privacy.resident_number("11010519491231002x")
    assert not privacy.resident_number("110105194913310027"), "no month 13"


# ---- the list of steps -----------------------------------------------------------------------------


class _Job(Section):
    clean: CleanConfig = CleanConfig()


def test_steps_are_strict(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("clean:\n  steps:\n  - {kind: length, min_chars: 3}\n  - {kind: privacy, email: null}\n")
    steps = load(_Job, str(path), []).clean.steps
    assert steps is not None and [step.kind for step in steps] == ["length", "privacy"]
    for text, message in (
        ("[{kind: lenght}]", "its key .kind. is .lenght., but must be one of"),
        ("[{min_chars: 3}]", "set its key .kind."),
        ("[{kind: length, min_char: 3}]", r"clean.steps.0.min_char: unknown key; did you mean clean.steps.0.min_chars"),
        ("[{kind: links, max_url_share: 2}]", r"clean.steps.0.max_url_share: expected a value less than or equal to 1"),
        ("[{kind: ngram_perplexity, model: x}]", "set max_perplexity, min_perplexity or both"),
        (
            "[{kind: causal_perplexity, model: x, min_perplexity: 9, max_perplexity: 3}]",
            "min_perplexity=9.* is not below",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load(_Job, None, [f"clean.steps={text}"])


def test_every_kind_can_be_made_and_stands_in_the_documentation() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", (Path(__file__).parents[3] / "docs/data.md").read_text(), re.M))
    kinds = {*operators._ROW_STEPS, *operators.MODEL_STEPS, *operators.GLOBAL_STEPS}
    assert set(STEP.json_schema()["discriminator"]["mapping"]) == kinds == documented


def test_passes_follow_the_order_of_the_steps() -> None:
    kinds = ["normalise", "exact_duplicates", "length", "near_duplicates"]
    found = operators.stages([STEP.validate_python({"kind": kind}) for kind in kinds])
    assert [([s.kind for s in stage.rows], stage.last.kind if stage.last else None) for stage in found] == [
        (["normalise"], "exact_duplicates"),
        (["length"], "near_duplicates"),
    ]
    model = STEP.validate_python({"kind": "causal_perplexity", "model": "x", "max_perplexity": 9})
    assert [stage.model is None for stage in operators.stages([model])] == [True, False], "rows are read first"
    assert operators.names([model, model]) == ["causal_perplexity_1", "causal_perplexity_2"]


def test_what_a_step_needs_is_asked_before_anything_starts(tmp_path: Path) -> None:
    for keys in (
        {"kind": "ngram_perplexity", "model": str(tmp_path / "none"), "max_perplexity": 9},
        {"kind": "causal_perplexity", "model": str(tmp_path / "none"), "max_perplexity": 9},
        {"kind": "quality_classifier", "model": str(tmp_path / "none")},
        {"kind": "decontaminate", "against": [str(tmp_path / "none")]},
        {"kind": "keywords", "path": str(tmp_path / "none")},
    ):
        with pytest.raises(UserError, match="none"):
            operators.check([STEP.validate_python(keys)])

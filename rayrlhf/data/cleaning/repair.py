"""Mojibake mended by ftfy: text that was UTF-8 and was read as something else."""

from __future__ import annotations

from rayrlhf.data.cleaning.config import Repair
from rayrlhf.data.cleaning.verdict import Operator


def build(config: Repair) -> Operator:
    """Only what was broken: width, ligatures and the normal form are left to `normalise`."""
    import ftfy

    settings = ftfy.TextFixerConfig(
        unescape_html="auto" if config.unescape_html else False,
        uncurl_quotes=config.uncurl_quotes,
        fix_latin_ligatures=False,
        fix_character_width=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )

    def repair(text: str) -> str:
        # every change starts from one of these; most text has none, and ftfy takes its time
        return text if text.isascii() and "&" not in text and "\x1b" not in text else ftfy.fix_text(text, settings)

    return repair

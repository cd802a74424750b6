"""Which layout a file's rows have, found on its first rows, and how they are read from then on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rayrlhf.data.answer_layouts import Layout, without_media
from rayrlhf.data.layouts import LAYOUTS
from rayrlhf.data.messages import answer_text, asked, with_system
from rayrlhf.data.rows import COLUMNS, PARSED, Row, parsed, problem, shortened
from rayrlhf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

OWN = "own"
AUTO = "auto"
EXTRAS = "extras"  # the column of a prompt's other columns, as JSON


@dataclass(frozen=True)
class Reading:
    """How rows of a path become rows of `kind`."""

    kind: str
    layout: str = OWN
    columns: Mapping[str, str] = field(default_factory=dict)  # a column's name here -> its name in the file
    with_extras: bool = False  # prompts: carry all other columns along, as JSON in `extras`
    gives: tuple[str, ...] = ()  # the columns of what it reads
    is_chat: bool = False  # whether prompts are messages
    has_system: bool = False  # whether rows have a column `system`, the first message of their prompts

    @property
    def is_plain(self) -> bool:
        """Whether rows stay as they are, but for columns that are left out."""
        return self.layout == OWN and not (self.columns or self.with_extras or self.is_chat)

    def wrong(self, row: Any) -> str:
        """What is wrong with a row of the file; "" when nothing is."""
        try:
            self(row)
        except ValueError as error:
            return str(error)
        return ""

    def __call__(self, row: Any) -> Row:
        """A row of the file as one of `kind`; ValueError says what is wrong with it, and is raised where one stands in
        the place of a row."""
        if isinstance(row, ValueError):
            raise row
        if not isinstance(row, dict):
            raise ValueError(problem(row, self.kind))
        row = renamed(row, self.columns)
        found = self._read(row)
        if self.gives and "prompt" in found and isinstance(found["prompt"], list) != self.is_chat:
            raise ValueError(
                f"mixes types: prompt is {shortened(found['prompt'])}, {'messages' if self.is_chat else 'a string'} in "
                "the first row. Make it strings, or messages, throughout"
            )
        if self.with_extras:
            found[EXTRAS] = json.dumps(self._extras(row), ensure_ascii=False, sort_keys=True, default=str)
        return found

    def _read(self, row: Row) -> Row:
        layout = _named(self.kind, self.layout)
        if layout is None:
            row = self._with_messages(row)
            wrong = problem(row, self.kind)
            if wrong:
                raise ValueError(wrong)
            return parsed(row, self.kind)
        if not layout.fits(row):
            raise ValueError(
                f"has the columns {sorted(row)}, not those of the layout {layout.name}, which the first rows have or "
                f"data.row_format states: {layout.expects}. The row: {shortened(row)}"
            )
        try:
            return layout.read(row)
        except ValueError as error:
            raise ValueError(f"is no row of the layout {layout.name}: {error}") from error

    def _with_messages(self, row: Row) -> Row:
        """A row of the own layout with its prompt in one form: messages where it has some, or a system message; ranked
        answers are texts."""
        if isinstance(row.get("ranked"), list):
            row = row | {"ranked": [answer_text(answer, "ranked") for answer in row["ranked"]]}
        prompt = row.get("prompt")
        if "prompt" not in COLUMNS[self.kind] or not isinstance(prompt, str | list):
            return row
        without_media(row)
        if isinstance(prompt, str) and not row.get("system") and not self.has_system:
            return row
        return row | {"prompt": with_system(row, asked(prompt, "prompt"))}

    def _extras(self, row: Row) -> Row:
        """All columns but the prompt's.  `reference`, the answer that responses are compared with, is also found where
        verl (reward_model.ground_truth) and OpenRLHF (label) have it."""
        layout = _named(self.kind, self.layout)
        read = COLUMNS[self.kind] if layout is None else layout.columns
        extras = {name: value for name, value in row.items() if name not in read}
        if "reference" not in extras:
            judged = row.get("reward_model")
            if isinstance(judged, dict) and "ground_truth" in judged:
                extras["reference"] = judged["ground_truth"]
            elif "label" in row:
                extras["reference"] = row["label"]
        return extras

    def schema(self) -> pa.Schema:
        """The Arrow types of the rows it gives."""
        import pyarrow as pa

        message = pa.struct([("role", pa.string()), ("content", pa.string())])
        types: dict[str, Any] = {"label": pa.bool_(), "num_given": pa.int64(), "ranked": pa.list_(pa.string())}
        types |= {"margin": pa.float64(), "score": pa.float64(), "messages": pa.list_(message)}
        if self.is_chat:
            types["prompt"] = pa.list_(message)
        return pa.schema([(name, types.get(name, pa.string())) for name in self.gives])


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """`row` with `columns` under their names here; a dotted name in the file is that of a value in an object.

    Raises ValueError where the row has not the column.
    """
    if not columns:
        return row
    taken = set(columns.values())
    found = {name: value for name, value in row.items() if name not in taken}
    for name, source in columns.items():
        value: Any = row.get(source, row)
        if source not in row:
            for key in source.split("."):
                if not isinstance(value, dict) or key not in value:
                    raise ValueError(
                        f"has no column {source}, which data.columns names for {name}: found {sorted(row)}. "
                        f"The row: {shortened(row)}"
                    )
                value = value[key]
        found[name] = value
    return found


def recognise(
    sample: Sequence[tuple[str, Any]],
    kind: str,
    layout: str = AUTO,
    columns: Mapping[str, str] | None = None,
    with_extras: bool = False,
) -> Reading:
    """The layout of the rows of a path, of which `sample` has the first ones as (where, row).

    Columns that are the project's own (`rows.COLUMNS`) win over others that are there too.  Raises DataError where
    the rows fit more than one other layout, or none, or not the `layout` that the configuration states.
    """
    columns = dict(columns or {})
    if layout != AUTO and layout != OWN and _named(kind, layout) is None:
        known = [OWN, *(one.name for one in LAYOUTS[kind])]
        raise DataError(f"data.row_format={layout} is no layout of {kind} rows; there are {', '.join(known)}")
    if layout == AUTO:
        layout = _found(sample, kind, columns)
    has_system = layout == OWN and any(isinstance(row, dict) and row.get("system") for _, row in sample)
    reading = Reading(kind, layout, columns, with_extras, has_system=has_system)
    for _, row in sample:
        if not reading.wrong(row):
            read = reading(row)
            return replace(reading, gives=tuple(read), is_chat=isinstance(read.get("prompt"), list))
    return replace(reading, gives=COLUMNS[kind])  # the first row that is read will say what is wrong


def _found(sample: Sequence[tuple[str, Any]], kind: str, columns: Mapping[str, str]) -> str:
    """The name of the layout that most rows of `sample` have."""
    rows: list[tuple[str, Row]] = []
    for where, row in sample:
        try:
            rows.append((where, renamed(row, columns) if isinstance(row, dict) else {}))
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
    votes = {OWN: sum(is_own(row, kind) for _, row in rows)}
    votes |= {one.name: sum(one.is_meant(row) for _, row in rows) for one in LAYOUTS[kind]}
    most = max(votes.values())
    found = [name for name, count in votes.items() if count == most]
    if not most or found[0] == OWN:
        return OWN
    if len(found) > 1:
        where, row = rows[0]
        raise DataError(
            f"{where}: has columns of more than one layout of {kind} rows, {' and '.join(found)}: set data.row_format "
            f"to the one that is meant. The row: {shortened(row)}"
        )
    return found[0]


def is_own(row: Row, kind: str) -> bool:
    """Whether the row has the project's own columns of `kind`, with plain values but for a prompt of messages."""
    if not all(name in row for name in COLUMNS[kind]):
        return False
    plain = [name for name in COLUMNS[kind] if name != "prompt" and name not in PARSED]
    return not any(isinstance(row[name], list | dict) for name in plain)


def others(kind: str) -> str:
    """The layouts that rows of `kind` may have beside the plain one, for a message; "" where there are none."""
    if not LAYOUTS[kind]:
        return ""
    shapes = "; ".join(f"{one.name}: {one.expects}" for one in LAYOUTS[kind])
    return (
        f"\nOther layouts of {kind} rows are {shapes}. Set data.row_format to name one, data.columns to rename columns "
        "(data.columns.prompt=question)"
    )


def _named(kind: str, name: str) -> Layout | None:
    return next((one for one in LAYOUTS[kind] if one.name == name), None)

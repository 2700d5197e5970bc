"""Tables that fit a terminal: columns that are too many go into further tables, and no number is cut."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

_MARGIN = 3  # of a column: a blank on each side, and a line


def fitted_tables(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    keys: int = 1,
    caption: str | None = None,
    last_is_summary: bool = False,
) -> list[Table]:
    """Return one table, or as many as it takes that none is wider than the terminal.

    Args:
        title: of the first table.
        header: of the columns; may have several lines.
        rows: texts with rich's markup.
        width: of the terminal, in characters.
        keys: number of first columns that every table has; the first one is folded if even these do not fit.
        caption: below the last table.
        last_is_summary: whether to draw a line above the last row.
    """
    widths = [max(map(_width, (name, *cells))) for name, *cells in zip(header, *rows, strict=True)]
    fixed = sum(widths[1:keys]) + keys * _MARGIN + 1
    widest = max(widths[keys:], default=0) + _MARGIN
    first = max(4, min(widths[0], width - fixed - widest))
    groups: list[list[int]] = [[]]
    used = fixed + first
    for column in range(keys, len(header)):
        if groups[-1] and used + widths[column] + _MARGIN > width:
            groups.append([])
            used = fixed + first
        groups[-1].append(column)
        used += widths[column] + _MARGIN
    tables = []
    for place, group in enumerate(groups):
        table = Table(title=title if place == 0 else None, caption=caption if place == len(groups) - 1 else None)
        table.add_column(header[0], width=first, overflow="fold")
        for column in [*range(1, keys), *group]:
            numbers = all(any(c.isdigit() for c in row[column]) or not row[column] for row in rows)
            table.add_column(header[column], justify="right" if numbers else "left", no_wrap=True, width=widths[column])
        for place_of_row, row in enumerate(rows):
            if last_is_summary and place_of_row == len(rows) - 1:
                table.add_section()
            table.add_row(row[0], *(row[column] for column in [*range(1, keys), *group]))
        tables.append(table)
    return tables


def _width(text: str) -> int:
    return max(line.cell_len for line in Text.from_markup(text).split("\n", allow_blank=True))

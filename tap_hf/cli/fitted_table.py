"""Tables that fit a terminal: columns that are too many go into further tables, and no number is cut."""

from collections.abc import Sequence

from rich.table import Table

_FRAME = 3  # of a column: a blank on each side, and a line


def fitted_tables(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Table]:
    """Return one table, or as many as it takes that none is wider than the terminal.

    Args:
        title: of the first table.
        header: of the columns; the first one names the rows, is in every table, and is folded if it is too wide.
        rows: plain texts.
        width: of the terminal, in characters.
    """
    first, *widths = (max(map(len, column)) for column in zip(header, *rows, strict=True))
    first = max(4, min(first, width - max(widths) - 2 * _FRAME - 1))
    groups: list[list[int]] = [[]]
    for column in range(1, len(header)):
        used = sum(widths[other - 1] + _FRAME for other in [*groups[-1], column])
        if groups[-1] and first + _FRAME + used + 1 > width:
            groups.append([])
        groups[-1].append(column)
    tables: list[Table] = []
    for group in groups:
        table = Table(title=None if tables else title)
        table.add_column(header[0], width=first, overflow="fold")
        for column in group:
            words = not any(character.isdigit() for row in rows for character in row[column])
            table.add_column(header[column], justify="left" if words else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(row[column] for column in [0, *group]))
        tables.append(table)
    return tables

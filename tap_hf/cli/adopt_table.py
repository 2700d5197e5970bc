"""What `tap-hf adopt` prints."""

from rich.table import Table

from tap_hf.hub.adopt import Adopted


def candidates_table(adopted: Adopted) -> Table:
    """Return one row per pair and candidate, the chosen one first and in bold."""
    table = Table(
        title="Published adapters, by the new client's validation loss",
        caption="in bold: what each pair started from; heads that are not taken along were trained alone",
    )
    for name in ("pair", "candidate", "loss", "heads taken along", "after local training"):
        table.add_column(name)
    for pair in adopted.pairs:
        for place, one in enumerate(pair.candidates):
            style, after = ("bold", f"{pair.loss:.4f}") if place == 0 else (None, "")
            table.add_row(pair.pair, one.name, f"{one.loss:.4f}", ", ".join(one.heads) or "-", after, style=style)
    return table

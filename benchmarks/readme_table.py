"""Write the results of a run into README.md, between the markers.

tap-hf run recipes/quickstart.yaml --output-dir runs/quickstart
python -m benchmarks.readme_table runs/quickstart
"""

import math
import sys
from collections import Counter
from pathlib import Path

from tap_hf import RunRecord, read_events, read_finished
from tap_hf.cli.tables import shown_metric, shown_steps
from tap_hf.records.costs import mean_steps
from tap_hf.records.events import stage1_decisions
from tap_hf.records.replacements import replacements_by_task
from tap_hf.tasks.results import SETS, sets_of

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def table(folder: Path) -> str:
    """Return the table of a run and what is said of its steps, as Markdown."""
    record = read_finished(folder)
    replaced, results = replacements_by_task(stage1_decisions(read_events(folder))), record.results or ()
    sets = sets_of(results)
    header = ["client", "task", "metric", *(SETS[name].title for name in sets), "one answer", "replaced", "steps"]
    lines = [f"| {' | '.join(header)} |", "|---" * 3 + "|---:" * (len(header) - 3) + "|"]
    for row in results:
        best, digits = row.best_sets, 3 if row.higher_is_better else 4
        shown = {name: shown_metric(row.values[name], digits) for name in sets}
        cells = [f"**{shown[name]}**" if name in best else shown[name] for name in sets]
        cells.append("" if row.constant is None else shown_metric(row.constant, digits))
        made, steps = str(replaced[row.client, row.task]), str(record.steps[row.client]["personal"])
        lines.append(f"| {' | '.join([row.client, row.task, f'{row.metric} {row.arrow}', *cells, made, steps])} |")
    means = [shown_steps(mean_steps(record.steps, name)) for name in sets]
    lines.append(f"| {' | '.join(['optimizer steps, mean', '', '', *means, '', '', ''])} |")
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items() if name != "tap_hf")
    return "\n".join(
        [*lines, "", f"Seed {record.recipe.seed}, {record.seconds or 0:.0f} s; {versions}.", *_said(record)]
    )


def _said(record: RunRecord) -> list[str]:
    """Return in words what the table has: test rows, noise, and whether the steps are equal."""
    rows = {row.n for row in record.results or () if row.n is not None}
    noise = 1.96 * math.sqrt(0.25 / min(rows))
    compared = ("backbone", "fine_tuned", "personal")
    unequal = [client for client, own in record.steps.items() if len({own[name] for name in compared}) > 1]
    titles = ", ".join(f"*{SETS[name].title}*" for name in compared)
    where = f"except on {', '.join(unequal)}" if unequal else "on every client"
    best = Counter(name for row in record.results or () for name in row.best_sets)
    counts = ", ".join(f"*{SETS[name].title}* in {best[name]}" for name in SETS if best[name])
    return [
        "",
        f"One seed and {min(rows)} test samples a row: the 95 % interval of an accuracy near 0.5 is ± {noise:.2f} by "
        f"these samples alone, so most differences here are noise. {titles} have equal numbers of optimizer steps, "
        f"{where}; the last line has the means of all sets. Best in a row of {len(record.results or ())}: {counts}.",
        "",
    ]


def main() -> None:
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + table(Path(sys.argv[1])) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()

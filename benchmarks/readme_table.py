"""Write the results of a run into README.md, between the markers.

tap-hf run recipes/quickstart.yaml --output-dir runs/quickstart
python -m benchmarks.readme_table runs/quickstart
"""

import sys
from pathlib import Path

from tap_hf.cli.tables import shown_metric
from tap_hf.records.events import read_events, stage1_decisions
from tap_hf.records.replacements import replacements_by_task
from tap_hf.records.run_record import read_finished
from tap_hf.tasks.results import sets_of

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def table(folder: Path) -> str:
    record = read_finished(folder)
    replaced = replacements_by_task(stage1_decisions(read_events(folder)))
    lines = [
        "| client | task | metric | backbone, heads only | global | global, fine-tuned | personal, stage 1 | personal, "
        "stage 2 | replaced |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record.results or ():
        best, digits = row.best_sets, 3 if row.higher_is_better else 4
        shown = {s: shown_metric(row.values[s], digits) for s in sets_of([row])}
        cells = [f"**{shown[s]}**" if s in best else shown[s] for s in shown]
        made = replaced[row.client, row.task]
        lines.append(f"| {row.client} | {row.task} | {row.metric} {row.arrow} | {' | '.join(cells)} | {made} |")
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items() if name != "tap_hf")
    lines.append(f"\nSeed {record.recipe.seed}, {record.seconds or 0:.0f} s; {versions}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + table(Path(sys.argv[1])) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()

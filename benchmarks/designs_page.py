"""What parts of the design buy, as a page of tables: `python -m benchmarks.designs_page` writes `docs/designs.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.remedies import REMEDIES
from mammo_utils.io import project_root, read_json, write_text
from mammo_utils.vocabulary import SYSTEMS

FOLDER = Path(__file__).parent
MEASURES = {
    "auc": "AUC, own exams",
    "recombined_auc": "AUC, recombined",
    "both_seen": "two cancers: both flagged",
    "none_flagged_wrong": "no cancer: any flagged",
}


def describe_planted(record: dict[str, Any]) -> str:
    """The record of `benchmarks.planted` as Markdown."""
    lines = [
        "## Against other designs, where the truth is known",
        "",
        f"Synthetic data. {record['exams']} test exams ({record['breasts']} breasts), subset {record['subset']}, seeds "
        f"{', '.join(map(str, record['seeds']))}, {record['epochs']} epochs. One view of a breast shows a finding, and "
        "a fifth of the four-view exams have cancer in both breasts (`config/planted.yaml`). Differences to the "
        "paper's design are paired by patient, with 95 % intervals over patients; the AUC of each seed shows how much "
        "trainings differ. `python -m benchmarks.planted` measures it again.",
    ]
    for question, answer in record["questions"].items():
        lines += ["", f"**{question[0].upper()}{question[1:]}** ({answer['task']})", ""]
        lines += ["| design | AUC | difference | 0 in the interval | AUC by seed |", "|---|---|---|---|---|"]
        for row in answer["rows"]:
            change = row.get("difference")
            inside = "" if change is None else "no" if change[1] > 0 or change[2] < 0 else "yes"
            seeds = ", ".join(f"{value:.3f}" for value in row["auc_of_seeds"])
            lines.append(f"| {row['name']} | {_span(row['auc'])} | {_span(change, '+')} | {inside} | {seeds} |")
    return "\n".join(lines)


def summarise_remedies(rows: list[dict[str, Any]]) -> list[str]:
    """One line per remedy: the range over systems of what recombining changes."""
    lines = []
    for remedy in REMEDIES:
        own = [row for row in rows if row["remedy"] == remedy]
        change = [row["recombined_auc"] - row["auc"] for row in own]
        area, seen, alarms = ([row[name] for row in own] for name in ("auc", "both_seen", "none_flagged_wrong"))
        lines.append(
            f"- {remedy}, {len(own)} systems: the AUC in own exams is {min(area):.2f} to {max(area):.2f}, and "
            f"recombining changes it by {min(change):+.2f} to {max(change):+.2f}; both of two cancers are flagged in "
            f"{min(seen):.1%} to {max(seen):.1%} of exams, and a breast in {min(alarms):.1%} to {max(alarms):.1%} of "
            "those without a cancer."
        )
    return lines


def describe_remedies(record: dict[str, Any]) -> str:
    """The record of `benchmarks.remedies` as Markdown."""
    lines = [
        "## Is each breast read from its own views?",
        "",
        f"Synthetic data. Exams recombined of the breasts of two patients, from {record['exams']} test exams; "
        f"{record['epochs']} epochs, seed {record['seed']}; 95 % intervals over patients. "
        "`python -m benchmarks.remedies` measures it again.",
        "",
        *summarise_remedies(record["rows"]),
        "",
        f"| system | design | {' | '.join(MEASURES.values())} |",
        f"|---|---|{'---|' * len(MEASURES)}",
    ]
    order = [(system, remedy) for system in SYSTEMS for remedy in REMEDIES]
    for row in sorted(record["rows"], key=lambda row: order.index((row["system"], row["remedy"]))):
        values = [_span([row[name], row[f"{name}_low"], row[f"{name}_high"]]) for name in MEASURES]
        lines.append(f"| {SYSTEMS[row['system']].title} | {row['remedy']} | {' | '.join(values)} |")
    return "\n".join(lines)


SHARES = {  # of `benchmarks.weights.locate_findings`
    "largest_weight": "largest weight of four",
    "weight_in_breast": "larger weight in its breast",
    "largest_contribution": "largest contribution of four",
    "contribution_in_breast": "larger contribution in its breast",
}


def describe_weights(record: dict[str, Any]) -> str:
    """The record of `benchmarks.weights` as Markdown."""
    rows, found = record["rows"], []
    for design in dict.fromkeys(row["design"] for row in rows):
        shares = {name: [row[name][0] for row in rows if row["design"] == design] for name in SHARES}
        spans = {name: f"{min(values):.0%} to {max(values):.0%}" for name, values in shares.items()}
        found.append(
            f"- {design}: the view with the finding has the largest of the four weights in {spans['largest_weight']} "
            f"of exams, and the larger one in its own breast in {spans['weight_in_breast']}."
        )
    lines = [
        "## Does the gate weigh the view that shows the finding?",
        "",
        f"Synthetic data (`config/planted.yaml`): one view of a breast shows a cancer, and the program that draws it "
        f"knows which. Test exams with four views and one cancer; {record['epochs']} epochs; 95 % intervals over "
        "patients. The weights are the means of the view with the finding, the other view of its breast, and a view of "
        "the other breast. The shares are those of the view with the finding; by chance, 25 % of four and 50 % of two. "
        "Contributions are those to the log-odds of the breast with the cancer, in absolute value. "
        "`python -m benchmarks.weights` measures it again.",
        "",
        *found,
        "",
        f"| design | seed | exams | mean weights | {' | '.join(SHARES.values())} |",
        f"|---|---|---|---|{'---|' * len(SHARES)}",
    ]
    for row in rows:
        weights = ", ".join(f"{weight:.2f}" for weight in row["weights"])
        values = " | ".join(_span(row[name]) for name in SHARES)
        lines.append(f"| {row['design']} | {row['seed']} | {row['n']} | {weights} | {values} |")
    return "\n".join(lines)


def _span(values: list[float | None] | None, sign: str = "") -> str:
    if values is None or values[0] is None:
        return "–"
    value, low, high = values
    return f"{value:{sign}.3f}" + ("" if low is None else f" ({low:{sign}.3f} to {high:{sign}.3f})")


def designs_page() -> str:
    """The whole page, from the records that come with the study."""
    parts = [
        "# What the parts of the design buy",
        describe_remedies(read_json(FOLDER / "remedies.json")),
        describe_weights(read_json(FOLDER / "weights.json")),
        describe_planted(read_json(FOLDER / "planted.json")),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_text(project_root() / "docs" / "designs.md", designs_page())

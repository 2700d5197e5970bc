"""The table of all attempts, and the list of those that were not clean."""

from collections.abc import Mapping, Sequence

from benchmarks.hostile.attempt import Finding, Outcome


def counts(findings: Sequence[Finding]) -> Mapping[str, Mapping[str, int]]:
    """Return the number of attempts of each kind, by outcome."""
    kinds = dict.fromkeys(finding.kind for finding in findings)
    return {
        kind: {"attempts": sum(one.kind == kind for one in findings)}
        | {o.value: sum(one.kind == kind and one.outcome is o for one in findings) for o in Outcome}
        for kind in kinds
    }


def table(findings: Sequence[Finding]) -> str:
    """Return a Markdown table, and a line for each attempt that was not clean."""
    columns = ["attempts", *(outcome.value for outcome in Outcome)]
    lines = [f"| `hostile` | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {kind} | {' | '.join(map(str, row.values()))} |" for kind, row in counts(findings).items()]
    return "\n".join([*lines, *(described(one) for one in findings if one.outcome is not Outcome.CLEAN)])


def described(finding: Finding) -> str:
    """Return what an attempt was and how it ended."""
    spent = f"{finding.seconds:.1f} s, {finding.memory:.0f} MiB"
    text = f"{finding.kind} {finding.number}: {finding.outcome} ({spent}): {finding.what}\n    {finding.reason}"
    return text.encode(errors="backslashreplace").decode()

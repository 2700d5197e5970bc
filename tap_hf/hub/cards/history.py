"""A client's rounds as a line of text."""

from itertools import pairwise

PLOT_WIDTH = 60


def history_line(marks: str) -> str:
    """Return a client's rounds as at most `PLOT_WIDTH` characters, each for one or more rounds.

    Examples:
        >>> history_line("RK-X")
        '█░·✗'
    """
    width = min(PLOT_WIDTH, len(marks))
    edges = [len(marks) * column // width for column in range(width + 1)] if width else [0]
    return "".join(_symbol(marks[start:end]) for start, end in pairwise(edges))


def _symbol(marks: str) -> str:
    kinds = set(marks) - {"-"}
    if "R" in kinds:
        return "█" if kinds == {"R"} else "▓"
    return "·" if not kinds else "✗" if kinds == {"X"} else "░"

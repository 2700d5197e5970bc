"""Measure the package as a structure: `python -m benchmarks.structure [FOLDER ...]`.

Give it folders of several checkouts to compare them. An *arrow* is an import from one module of another; late imports
and those for types alone count too. A *floor* is one more than the highest floor that a module imports from, a *circle*
a set of modules that import each other. The same is counted for rooms: what lies directly in the package.
"""

import argparse
import ast
import re
from pathlib import Path

Arrows = dict[str, set[str]]


def arrows_between(package: Path) -> Arrows:
    """Return which modules each module of a package imports."""
    modules = {
        ".".join((package.name, *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    arrows: Arrows = {}
    for module, path in modules.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                found |= inner or {node.module}
        arrows[module] = (found & modules.keys()) - {module, package.name}
    del arrows[package.name]  # the public names, which lead everywhere
    return arrows


def circles_in(arrows: Arrows) -> list[set[str]]:
    """Return the sets of two modules and more that reach each other."""
    reach = {module: set(targets) for module, targets in arrows.items()}
    for middle in reach:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    together = {module: frozenset({m for m in reach[module] if module in reach[m]} | {module}) for module in reach}
    return [set(circle) for circle in set(together.values()) if len(circle) > 1]


def floors_of(arrows: Arrows) -> int:
    """Return the number of floors; modules of a circle share one."""
    home = {module: module for module in arrows}
    for circle in circles_in(arrows):
        home |= dict.fromkeys(circle, min(circle))
    floors: dict[str, int] = {}
    joined: Arrows = {}
    for module, targets in arrows.items():
        joined.setdefault(home[module], set()).update(home[t] for t in targets if home[t] != home[module])
    while len(floors) < len(joined):
        ready = {m: max((floors[t] for t in ts), default=0) + 1 for m, ts in joined.items() if ts <= floors.keys()}
        floors |= ready
    return max(floors.values())


def rooms_of(arrows: Arrows) -> Arrows:
    """Return the arrows between rooms."""
    rooms: Arrows = {}
    for module, targets in arrows.items():
        room = module.split(".")[1]
        rooms.setdefault(room, set()).update(t.split(".")[1] for t in targets if t.split(".")[1] != room)
    return rooms


def figures(package: Path) -> dict[str, str]:
    """Return what is measured, by name."""
    arrows = arrows_between(package)
    rooms, texts = rooms_of(arrows), {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    longest = max(texts, key=lambda path: texts[path].count("\n"))
    entries = [p for p in package.iterdir() if p.name not in ("__init__.py", "__main__.py", "py.typed", "__pycache__")]
    shown: dict[str, str] = {}
    for what, graph in (("module", arrows), ("room", rooms)):
        tied = sorted(len(circle) for circle in circles_in(graph))
        shown |= {
            f"{what}s": f"{len(graph)}",
            f"{what} floors": f"{floors_of(graph)}",
            f"{what} arrows": f"{sum(map(len, graph.values()))}",
            f"{what} circles": f"{len(tied)}" + (f" (of {', '.join(map(str, tied))})" if tied else ""),
        }
    tests = "".join(path.read_text(encoding="utf-8") for path in (package.parent / "tests").rglob("*.py"))
    depths = [
        module.count(".") for module in re.findall(rf"^ *from {package.name}(\.[\w.]+) import", tests, re.MULTILINE)
    ]
    any_dicts = sum(len(re.findall(r"(?:dict|Mapping)\[str, Any\]", text)) for text in texts.values())
    return shown | {
        "entries of the package": f"{len(entries)}",
        "lines": f"{sum(text.count(chr(10)) for text in texts.values()):,}",
        "longest file": f"{texts[longest].count(chr(10))} ({longest.relative_to(package)})",
        "dict or Mapping[str, Any]": f"{any_dicts}",
        "tests' imports from a room or its files": f"{len(depths)} (from its files: {sum(d >= 2 for d in depths)})",
    }


def main() -> None:
    """Print one column a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("tap_hf")])
    columns = [figures(folder) for folder in parser.parse_args().folders]
    for name in columns[0]:
        print("| " + " | ".join([name, *(column[name] for column in columns)]) + " |")


if __name__ == "__main__":
    main()

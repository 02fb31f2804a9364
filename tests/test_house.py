"""The house rules that a program can check: imports go down only, functions and modules stay readable."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ticketing.processes import ROOT

# From the top: each may import from those below it.
STOREYS = [("ticketing",), ("incidents",), ("config",), ("platforms", "auditlog")]
# Within `incidents`, from the top; what is not named here is below nothing.
ROOMS = ["api", "console", "tasks", "inbound", "intake", "turns", "lifecycle", "statements", "models"]
OURS = [name for storey in STOREYS for name in storey]
TESTS = ("tests",)
LONGEST_MODULE = 600
LONGEST_FUNCTION = 80
DUMPING_GROUNDS = {"utils", "util", "helpers", "helper", "common", "base", "services", "service", "managers", "misc"}
# The outermost loops of processes and threads, where one round's accident must not end all rounds to come; and where
# requests share a transaction, so that each is told its own accident and no other's.
BROAD_EXCEPTS = {
    "incidents/delivery/lanes.py": 2,
    "incidents/turns.py": 1,
    "incidents/wakeup.py": 1,
    "incidents/watchdog.py": 1,
}
# Words that tell of work left undone.
UNDONE = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")
CHECKED_TEXTS = {".py", ".md", ".txt", ".in", ".toml", ".html", ".css", ".js", ".yml", ".yaml", ""}


def modules(folders=OURS) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide where they go"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if _is_module(whole) else node.module


def _is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def imports(path: Path) -> set[str]:
    """What it imports when it runs, as opposed to when its types are checked."""
    unreal = {
        id(inner)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in node.body
    }
    return {name for node in ast.walk(tree(path)) if id(node) not in unreal for name in imported(node)}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def violations(found: Iterator[str]) -> None:
    assert not (wrong := sorted(found)), "\n".join(wrong)


def test_imports_go_down_only():
    below = {
        name: {one for storey in STOREYS[level + 1 :] for one in storey}
        for level, storey in enumerate(STOREYS)
        for name in storey
    }
    violations(
        f"{named(path)} imports {name}"
        for folder in OURS
        for path in modules([folder])
        for name in imports(path)
        if (top := name.partition(".")[0]) in OURS and top != folder and top not in below[folder]
    )


def test_within_incidents_imports_go_down_only():
    def violation() -> Iterator[str]:
        for level, room in enumerate(ROOMS):
            above = {f"incidents.{name}" for name in ROOMS[:level]}
            for path in [ROOT / f"incidents/{room}.py", *(ROOT / f"incidents/{room}").rglob("*.py")]:
                if path.exists():
                    yield from (f"{named(path)} imports {name}" for name in imports(path) & above)

    violations(violation())


def test_the_product_does_not_import_its_tests():
    violations(f"{named(p)} imports {name}" for p in modules() for name in imports(p) if name.startswith("tests"))


def test_no_module_is_part_of_a_circle():
    graph = {_dotted(path): imports(path) for path in modules()}
    known = set(graph)
    below = {name: {n for n in names if n in known} for name, names in graph.items()}
    while leaves := [name for name, names in below.items() if not names]:
        below = {name: names.difference(leaves) for name, names in below.items() if name not in leaves}
    assert not below, f"circles among {sorted(below)}"


def _dotted(path: Path) -> str:
    return named(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_nothing_is_imported_inside_a_function():
    violations(
        f"{named(path)}:{node.lineno}"
        for path in modules(OURS + list(TESTS))
        for function in functions(path)
        if not (function.name == "ready" and path.name == "apps.py")
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    )


def test_modules_are_short():
    lengths = {named(path): len(path.read_text().splitlines()) for path in modules()}
    violations(f"{name}: {lines} lines" for name, lines in lengths.items() if lines > LONGEST_MODULE)


def test_functions_are_short():
    lengths = {
        f"{named(path)}: {function.name}": function.end_lineno - function.lineno + 1
        for path in modules()
        for function in functions(path)
        if "/migrations/" not in named(path)
    }
    violations(f"{name}, {lines} lines" for name, lines in lengths.items() if lines > LONGEST_FUNCTION)
    assert sorted(lengths.values())[int(len(lengths) * 0.95)] < 40


def test_broad_excepts_are_in_outermost_loops_only():
    found = {
        named(path): count
        for path in modules()
        if (count := sum(_is_broad(node) for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)))
    }
    assert found == BROAD_EXCEPTS


def _is_broad(handler: ast.ExceptHandler) -> bool:
    if ast.unparse(handler.body[-1]) == "raise":  # tidies up, and hides nothing
        return False
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(one is None or getattr(one, "id", "") in ("Exception", "BaseException") for one in caught)


def test_no_module_is_a_dumping_ground():
    violations(named(path) for path in modules(OURS + list(TESTS)) if path.stem in DUMPING_GROUNDS)
    violations(named(path.parent) for path in modules() if path.parent.name in DUMPING_GROUNDS)


def test_every_module_opens_with_its_reason():
    violations(
        named(path)
        for path in modules()
        if path.stem not in ("__init__", "apps") and "/migrations/" not in named(path)
        if not ast.get_docstring(tree(path))
    )


@pytest.mark.parametrize("folder", [*OURS, *TESTS, "docker", "."])
def test_no_text_tells_of_work_undone_or_where_it_was_done(folder):
    found = (ROOT / folder).glob("*") if folder == "." else (ROOT / folder).rglob("*")
    texts = [p for p in found if p.is_file() and p.suffix in CHECKED_TEXTS and p != Path(__file__).resolve()]
    violations(
        f"{named(path)}:{number} {line.strip()[:80]}"
        for path in texts
        if "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if UNDONE.search(line) or f"{ROOT}/" in line
    )

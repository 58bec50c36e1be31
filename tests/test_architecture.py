# SPDX-License-Identifier: Apache-2.0
"""The layout's rules, asserted by reading the sources."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "common").rglob("*.py"))
ALL_SOURCES = SOURCES + sorted((ROOT / "tests").rglob("*.py"))
FOUNDATION = {"spatial", "atomic", "checks", "console"}  # the last three import nothing of ours
RUNS = {"runs"}
TOOLS = {"losses", "metrics", "networks", "io", "figures"}
INPUTS = {"transforms", "data"}
RUNNING = {"engines", "handlers"}
MAY_IMPORT = (
    {"spatial": set(), "runs": FOUNDATION}
    | dict.fromkeys(TOOLS, FOUNDATION)
    | {"transforms": FOUNDATION | RUNS | TOOLS, "data": FOUNDATION | TOOLS | {"transforms"}}
    | dict.fromkeys(RUNNING, FOUNDATION | RUNS | TOOLS | INPUTS | RUNNING)
    | {"methods": FOUNDATION | TOOLS | {"engines"}}
    | {"bundle.py": FOUNDATION | RUNS, "workflow.py": FOUNDATION | RUNS | TOOLS | INPUTS | RUNNING | {"bundle"}}
    | {"inference.py": FOUNDATION | RUNS | TOOLS | INPUTS | RUNNING | {"bundle", "workflow"}}
    | {"registration.py": FOUNDATION | RUNS | TOOLS | INPUTS | RUNNING | {"bundle", "inference"}}
    | {
        "cli": FOUNDATION
        | RUNS
        | TOOLS
        | INPUTS
        | RUNNING
        | {"bundle", "inference", "methods", "registration", "workflow"}
    }
)
LAZY = {"h5py", "itk", "matplotlib"}
LICENSE_LINE = "# SPDX-License-Identifier: Apache-2.0"
every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def imports(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def inside_functions(tree):
    functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    return {id(node): node for function in functions for node in imports(function)}.values()


def absolute_names(node):
    """Top-level packages of an absolute import."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if node.level == 0 else set()


def packages_of(path, node):
    """First parts below ``common`` that a relative import reaches."""
    folder = path.relative_to(ROOT / "common").parent.parts
    base = folder[: len(folder) - (node.level - 1)]
    parts = (*base, *(node.module.split(".") if node.module else ()))
    return {parts[0]} if parts else {alias.name for alias in node.names}


def test_there_is_something_to_read():
    assert len(SOURCES) > 30
    assert {path.name for path in (ROOT / "common").iterdir() if path.is_dir()} - {"__pycache__", "templates"} == {
        name for name in MAY_IMPORT if not name.endswith(".py")
    }


@every_source
def test_packages_import_only_what_lies_below_them(path):
    package = path.relative_to(ROOT / "common").parts[0]
    relative = [n for n in imports(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.level]
    reached = {(name, node.lineno) for node in relative for name in packages_of(path, node)}
    allowed = MAY_IMPORT.get(package, set(MAY_IMPORT) | FOUNDATION) | {package}
    assert not {entry for entry in reached if entry[0] not in allowed}


@every_source
def test_common_imports_itself_relatively(path):
    """A packed bundle carries the package under another name."""
    tree = ast.parse(path.read_text())
    assert not [node.lineno for node in imports(tree) if "common" in absolute_names(node)]
    assert not [
        n.lineno for n in imports(tree) if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)
    ]


@every_source
def test_functions_import_only_the_heavy_optional_packages(path):
    for node in inside_functions(ast.parse(path.read_text())):
        assert absolute_names(node) and absolute_names(node) <= LAZY, f"line {node.lineno}"


@every_source
def test_heavy_optional_packages_are_imported_where_they_are_used(path):
    top = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert not [node.lineno for node in top if absolute_names(node) & LAZY]


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_init_files_are_empty(path):
    assert path.read_text().strip() == ""


@pytest.mark.parametrize("path", ALL_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_licensed(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= (300 if path in SOURCES else 400)
    assert path.name == "__init__.py" or lines[0] == LICENSE_LINE


def code_lines(function):
    """Lines of a function without its docstring."""
    documented = isinstance(function.body[0], ast.Expr) and isinstance(function.body[0].value, ast.Constant)
    docstring = function.body[0].end_lineno - function.body[0].lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


@every_source
def test_functions_are_short(path):
    functions = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert not [f"{n.name}: {code_lines(n)} lines" for n in functions if code_lines(n) > 40]


@every_source
def test_modules_and_public_functions_say_what_they_are(path):
    tree = ast.parse(path.read_text())
    if not tree.body:
        return
    assert ast.get_docstring(tree)
    public = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
    assert not [node.name for node in public if not ast.get_docstring(node)]


@every_source
def test_every_argument_is_typed(path):
    untyped = []
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            every = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            extra = [a for a in (function.args.vararg, function.args.kwarg) if a]
            named = [a for a in every if a.arg not in ("self", "cls")] + extra
            untyped += [f"{function.name}({a.arg})" for a in named if a.annotation is None]
    assert not untyped


DOCUMENTED = (ast.FunctionDef, ast.ClassDef)
SECTION = re.compile(r"(Args|Returns|Yields|Raises|Reference|References):")


def decorators(function):
    return {getattr(node, "id", getattr(node, "attr", "")) for node in function.decorator_list}


def arguments(node):
    """Names that a call takes: of a class those of its constructor, or its fields."""
    if isinstance(node, ast.ClassDef):
        constructor = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
        return arguments(constructor[0]) if constructor else fields
    every = node.args.posonlyargs + node.args.args + node.args.kwonlyargs + [node.args.vararg, node.args.kwarg]
    return [argument.arg for argument in every if argument and argument.arg not in ("self", "cls")]


def sections(docstring):
    """Lines of each section of a docstring, without their indentation."""
    found, lines = {}, []
    for line in docstring.splitlines():
        if SECTION.fullmatch(line):
            lines = found.setdefault(line.rstrip(":"), [])
        elif line.startswith("    "):
            lines.append(line[4:])
        elif line:
            lines = []
    return found


def described(docstring):
    """Names that the section Args describes."""
    return [line.partition(":")[0] for line in sections(docstring).get("Args", ()) if line and line[0] != " "]


def undocumented(function):
    """What a public function takes or returns, but its docstring has no section for."""
    docstring = ast.get_docstring(function)
    if docstring is None or function.name.startswith("_") or decorators(function) & {"property", "cached_property"}:
        return set()
    lacking = set(arguments(function)) - set(described(docstring))
    returns = function.returns is not None and ast.unparse(function.returns) not in ("None", "NoReturn")
    return lacking | ({"Returns"} if returns and not {"Returns", "Yields"} & set(sections(docstring)) else set())


@every_source
def test_docstrings_have_sections_that_tools_can_read(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DOCUMENTED)]
    wrong = []
    for node in nodes:
        docstring = ast.get_docstring(node) or ""
        wrong += [
            f"{node.name}: {line}" for line in docstring.splitlines() if re.search(SECTION.pattern + r" *\S", line)
        ]
        wrong += [f"{node.name}: no {name}" for name in described(docstring) if name not in arguments(node)]
    assert not wrong


@every_source
def test_public_functions_describe_what_they_take_and_return(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    lacking = {node.name: undocumented(node) for node in functions if undocumented(node)}
    assert not lacking

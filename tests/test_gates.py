"""Rules of the house that a reader cannot check at a glance: imports, documentation, comparisons that check nothing."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sb3_rainbow"
MODULES = sorted(PACKAGE.rglob("*.py"))
#: What every room may import of ours. ``arguments`` and ``type_aliases`` hold no behaviour, and are open to all
ARROWS = {
    "arguments": set(),
    "type_aliases": set(),
    "process": set(),
    "replay.arrays": set(),
    "replay.n_step": {"replay.arrays"},
    "replay.priorities": {"replay.arrays"},
    "replay.transitions": {"replay.arrays", "replay.n_step"},
    "replay.frames": {"replay.arrays"},
    "replay.observations": {"replay.arrays", "replay.frames"},
    "replay.buffer": {"process", "replay.arrays", "replay.transitions", "replay.priorities", "replay.observations"},
    "replay": set(),
    "noisy": set(),
    "losses": set(),
    "heads": {"losses"},
    "checks": {"noisy"},
    "cuda_graph": set(),
    "policies": {"noisy", "heads"},
    "rainbow": {"policies", "losses", "checks", "cuda_graph", "process", "replay.buffer"},
    "callbacks": {"rainbow"},
    "tuning": set(),
    "cluster": set(),
    "presets": set(),
    "envs.subproc": {"checkpoint.encoding"},
    "envs.atari": set(),
    "envs.actors": {"cluster", "checkpoint.encoding", "envs.subproc"},
    "envs": {"envs.actors", "envs.atari", "envs.subproc"},
    "zoo": {"rainbow", "tuning", "envs", "presets"},
    "export": {"policies", "rainbow"},
    "checkpoint.folder": set(),
    "checkpoint.encoding": set(),
    "checkpoint.state": {"checkpoint.folder", "checkpoint.encoding", "rainbow", "replay.buffer"},
    "checkpoint.callback": {"checkpoint.folder", "checkpoint.state", "rainbow"},
    "checkpoint": {"checkpoint.folder", "checkpoint.state", "checkpoint.callback"},
    "sweep.suite": {"presets", "zoo"},
    "sweep.curve": set(),
    "sweep.evaluation": set(),
    "sweep.attempt": {"sweep.suite", "checkpoint.folder", "zoo"},
    "sweep.training": {"sweep.suite", "sweep.attempt", "sweep.curve", "sweep.evaluation", "checkpoint", "zoo"},
    "sweep.search": {"sweep.suite", "sweep.attempt"},
    "sweep.run": {"sweep.suite", "sweep.attempt", "sweep.training", "sweep.search"},
    "sweep.engine": {"cluster", "sweep.suite"},
    "sweep.table": {"sweep.suite", "sweep.attempt", "sweep.search"},
    "sweep.driver": {"sweep.suite", "sweep.attempt", "sweep.engine", "sweep.search", "sweep.table"},
    "sweep.__main__": {"sweep.driver"},
    "sweep": set(),
    "": {"policies", "presets", "rainbow", "replay.buffer"},
}
#: Libraries that the rooms below SB3 may import; the others may import SB3 too
NO_SB3 = {
    "arguments",
    "replay.arrays",
    "replay.n_step",
    "replay.transitions",
    "replay.priorities",
    "replay.frames",
    "noisy",
    "losses",
    "heads",
    "cuda_graph",
    "tuning",
}


def room(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imported(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Full names of imported modules and things."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=room)
def test_imports_follow_the_arrows(path):
    tree = ast.parse(path.read_text())
    in_functions = {
        id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    for name, node in imported(tree):
        library = name.split(".")[0]
        if library == "rl_zoo3":
            assert id(node) in in_functions, "rl_zoo3 is imported inside functions only"
        if room(path) in NO_SB3:
            assert library in {"sb3_rainbow", "numpy", "torch", "psutil", *sys.stdlib_module_names}, name
        if library == "sb3_rainbow":
            inner = name.removeprefix("sb3_rainbow").removeprefix(".")
            rooms = {other for other in ARROWS if other and (inner == other or inner.startswith(other + "."))}
            target = max(rooms, key=len, default="")
            assert target in ARROWS[room(path)] | {"arguments", "type_aliases"}, f"{room(path)} imports {name}"


def test_every_room_is_drawn():
    assert {room(path) for path in MODULES} == set(ARROWS)


def test_every_room_is_in_the_table_for_contributors():
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## The house")[2].partition("\nWho may import")[0]
    named = set(re.findall(r"`([\w/]+)\.py`", table))
    for path in MODULES:
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        assert name in named or path.stem in named or path.stem.startswith("__"), f"{name} is not in the table"


def test_a_room_is_read_in_one_sitting():
    lengths = {room(path): len(path.read_text().splitlines()) for path in MODULES}
    assert max(lengths.values()) <= 480, lengths


def inherited(path: Path, name: str) -> str:
    """What the class above says of a method, where that is documented once."""
    module = importlib.import_module(f"sb3_rainbow.{room(path)}")
    cls, method = name.split(".")
    return inspect.getdoc(getattr(getattr(module, cls), method)) or ""


def public_functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Name, node and docstring of each public function and method; a constructor has the docstring of its class."""

    def walk(body: list[ast.stmt], prefix: str, class_doc: str) -> Iterator[tuple[str, ast.FunctionDef, str]]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                doc = ast.get_docstring(node)
                assert doc, f"{node.name} has no docstring"
                yield from walk(node.body, f"{node.name}.", doc)
            elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
                yield f"{prefix}__init__", node, class_doc
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                name = f"{prefix}{node.name}"
                yield name, node, ast.get_docstring(node) or (inherited(path, name) if prefix else "")

    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    yield from walk(tree.body, "", "")


@pytest.mark.parametrize("path", [*MODULES, ROOT / "_sb3_rainbow_startup.py", ROOT / "hatch_build.py"], ids=lambda p: p.stem)
def test_everything_public_is_documented(path):
    for name, node, doc in public_functions(path):
        assert doc, f"{name} has no docstring"
        is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        expected = {argument.arg for argument in arguments} - {"self", "cls"}
        expected |= {argument.arg for argument in (node.args.vararg, node.args.kwarg) if argument}
        documented = set(re.findall(r":param (\w+):", doc))
        assert expected <= documented, f"{name}: {sorted(expected - documented)} not documented"
        if not name.endswith("__init__"):
            assert documented <= expected, f"{name}: {sorted(documented - expected)} documented, but there is none"
        returns = node.returns is not None and not (isinstance(node.returns, ast.Constant) and node.returns.value is None)
        if returns and not is_property and not name.endswith("__init__"):
            assert ":return:" in doc, f"{name} does not say what it returns"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.stem)
def test_no_comparison_is_made_and_its_result_thrown_away(path):
    checks = {"array_equal", "allclose", "equal", "all", "any", "isclose", "issubset", "startswith"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr):
            value = node.value
            assert not isinstance(value, (ast.Compare, ast.BoolOp)), f"line {node.lineno} checks nothing"
            called = value.func if isinstance(value, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            assert name not in checks, f"line {node.lineno}: the result of {name} is thrown away"


def test_every_script_finds_what_it_imports():
    scripts = [*ROOT.glob("benchmarks/*/*.py"), *ROOT.glob("examples/*.py")]
    assert len(scripts) > 10
    load = """
import runpy, sys
for path in sys.argv[1:]:
    before, sys.path[0] = set(sys.modules), path.rpartition("/")[0]
    try:
        runpy.run_path(path)
    except ModuleNotFoundError as error:
        if error.name != "minatar":  # not among what the tests install
            raise
    for name in set(sys.modules) - before:  # another folder's scripts do not find it
        if str(getattr(sys.modules[name], "__file__", "")).startswith(sys.path[0]):
            del sys.modules[name]
"""
    done = subprocess.run([sys.executable, "-c", load, *map(str, scripts)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_no_mistake_of_a_user_is_met_by_an_assertion():
    with_assertions = {
        room(path) for path in MODULES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)
    }
    assert with_assertions <= {"checkpoint.state"}, "of our own mistakes, for mypy"


def test_the_packages_own_code_draws_nothing_from_numpys_global_state():
    # predict is SB3's: with one environment it must toss the same coin
    for path in MODULES:
        for line in path.read_text().splitlines():
            if re.search(r"np\.random\.(?!default_rng|Generator|RandomState|mtrand\._rand\)|get_state|set_state)", line):
                assert room(path) == "rainbow", line
                assert "explore = np.random.rand(n_envs)" in line, line

"""Claims about the whole checkout: one name a step, imports that point down, no leftovers."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "src" / "exemplar"
MODULES = sorted(PACKAGE.rglob("*.py"))

FOUNDATION = {"records", "seeding", "errors"}
CONCEPTS = {
    "prompts",
    "models",
    "devices",
    "prepacked",
    "tasks",
    "data",
    "retrieval",
    "lm",
    "training",
    "evaluation",
}
REGISTRY = ["tracking", "registry", "serving"]  # no settings; each knows those before it
TOOLS = {"kfp", "mlflow", "dvc", "typer", "pydantic"}
HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "pyarrow",
    "faiss",
    "bm25s",
    "sklearn",
    "matplotlib",
    "pandas",
    "scipy",
    "mlflow",
    "kfp",
    "dvc",
}
MAY_IMPORT_TORCH = re.compile(
    r"devices|prepacked|training/\w+|retrieval/encoder|lm/(?!__init__|base|scoring)\w+"
)
MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 60


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def top(path: Path) -> str:
    """The concept folder, or the module itself where it lies at the top."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a tree, with its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported when the module itself is."""
    for node in tree.body:
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not checking and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from imports(node)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def ours(names: Iterable[str]) -> set[str]:
    """Those of the imported modules that are this package's, as paths below it."""
    known = {f"exemplar.{name_of(path)}".replace("/", ".") for path in MODULES}
    known |= {name.removesuffix(".__init__") for name in known}
    found = set(names) & known - {"exemplar"}
    return {name.removeprefix("exemplar.").replace(".", "/") for name in found}


def test_a_step_has_one_name_in_all_places():
    """With two names for one step nobody finds the log, the file or the setting that belongs."""
    import typer

    from exemplar import layout, steps
    from exemplar.cli import app
    from exemplar.config import Profile, load_params

    names = list(layout.STEPS)
    functions = {
        name
        for name, function in inspect.getmembers(steps, inspect.isfunction)
        if function.__module__ in ("exemplar.steps", "exemplar.steps_scoring") and name != "beside"
    }
    assert functions == set(names) == set(steps.__all__)
    commands = {name.replace("-", "_") for name in typer.main.get_command(app).commands}
    assert set(names) <= commands
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    for_others = ("baseline_", "trained_")  # the same commands, for what is not a round
    assert [stage for stage in stages if not stage.startswith(for_others)] == names
    for profile in load_params(PROJECT / "params.yaml").profiles.values():
        sections = [name for name in type(profile).model_fields if name not in ("seed", "lm")]
        assert sections == names
    assert [name for name in Profile.model_fields if name not in ("seed", "lm")] == names
    for folder in ("components", "tests/components"):
        found = {
            path.stem.removeprefix("test_") if path.is_file() else path.name
            for path in (PROJECT / folder).glob("*")
            if (path / "component.py").is_file() or path.match("test_*.py")
        }
        assert found == set(names), folder


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    """A concept that knows its tools cannot be used, or tested, without them."""
    tree, own = parsed(path), top(path)
    foreign = {name.split(".")[0] for name in imports(tree)} - {"exemplar"}
    below = {name.split("/")[0] for name in ours(imports(tree))} - {"__init__"}
    if own in FOUNDATION:
        assert foreign <= set(sys.stdlib_module_names)
        assert below <= FOUNDATION
    elif own in CONCEPTS:
        assert not foreign & TOOLS
        assert below <= FOUNDATION | CONCEPTS
        assert not re.search(r"\bos\.(environ|getenv|putenv)\b", path.read_text(encoding="utf-8"))
    elif own in REGISTRY:
        assert below <= FOUNDATION | CONCEPTS | set(REGISTRY[: REGISTRY.index(own) + 1])
    commands = {"__main__", "cli"}
    if own not in commands:
        assert not below & commands
        assert own == "kubeflow" or not below & {"steps", "kubeflow"}
        assert own == "steps" or "steps_scoring" not in below


def test_no_module_imports_itself_through_others():
    """A circle imports in one order and fails in another."""
    graph = {name_of(path): ours(at_import(parsed(path))) for path in MODULES}
    packages = {name_of(path).removesuffix("/__init__"): name_of(path) for path in MODULES}
    edges = {
        name: {packages.get(other, other) for other in below} - {name}
        for name, below in graph.items()
    }
    TopologicalSorter(edges).prepare()  # raises CycleError, naming the circle


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_libraries_load_inside_functions(path):
    """Each costs seconds at every start of every command, `--help` among them."""
    loaded = {name.split(".")[0] for name in at_import(parsed(path))} & HEAVY
    allowed = {"torch"} if MAY_IMPORT_TORCH.fullmatch(name_of(path)) else set()
    assert loaded <= allowed


def test_help_loads_no_heavy_library():
    """`exemplar --help` must answer at once."""
    code = (
        "import sys\n"
        "from exemplar.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split("LOADED")[1].split())
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"pydantic", "numpy", "yaml"})


def test_every_command_and_option_explains_itself(run_cli):
    """Nobody reads the source to find out what a flag does."""
    import typer

    from exemplar.cli import app

    commands = dict(typer.main.get_command(app).commands)
    for name, group in list(commands.items()):
        inner = getattr(group, "commands", {})
        commands |= {f"{name} {word}": command for word, command in inner.items()}
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"
    shown = run_cli("search", "--help")
    assert shown.code == 0
    assert "--baseline" in shown.out


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_stay_readable_in_one_go(path):
    """What does not fit into a head is not reviewed."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_swallowed_left_open_or_drawn_from_global_state(path):
    """Each of these gives results that are wrong, or differ, without a word."""
    text, tree = path.read_text(encoding="utf-8"), parsed(path)
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, "a bare except catches the user's Ctrl-C"
            assert ast.unparse(node.type) not in ("Exception", "BaseException")
            assert not all(isinstance(inner, ast.Pass) for inner in node.body)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "hash", "hash() of a text differs from process to process"
            assert not re.fullmatch(
                r"(np|numpy)\.random\.(seed|rand\w*|choice|shuffle|permutation)"
                r"|random\.(seed|random|choice|choices|sample|shuffle|randint|randrange)",
                called,
            ), f"{called} draws from global state"


def test_package_inits_hold_a_docstring_alone():
    """Code in them runs at every import, whoever asks for what."""
    for path in PACKAGE.rglob("__init__.py"):
        body = parsed(path).body
        assert ast.get_docstring(parsed(path)), path
        if path.parent.name not in (
            "lm",
            "cli",
            "serving",
            "exemplar",
        ):  # `load`, `main`, `Retriever`
            assert len(body) == 1, path


def test_the_mlflow_folder_is_no_package():
    """With an __init__.py it would hide the library of the same name."""
    folder = PROJECT / "mlflow"
    assert not list(folder.rglob("__init__.py"))
    assert not list(folder.rglob("test_*.py"))
    import mlflow

    assert folder not in Path(mlflow.__file__).parents


def tracked_texts() -> Iterator[tuple[str, str]]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        path = PROJECT / name
        if name and path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                yield name, content.decode("utf-8")


def test_no_file_names_a_machine_or_a_package_index():
    """A path of one machine, or an index behind one firewall, fails everywhere else."""
    if not (PROJECT / ".git").exists():
        pytest.skip("the list of files comes from Git; this is no checkout")
    folders = "|".join(["home", "Users", "root", "work", "tmp/dev", "tmp/pytest"])
    absolute = re.compile(rf"(?<![\w.$}})/~-])/(?:{folders})/")
    index = re.compile("--(extra-)?index" + "-url|/simp" + "le/")
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if absolute.search(line) or index.search(line)
    ]
    assert not found, "\n".join(found)

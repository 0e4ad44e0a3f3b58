"""What holds for the project as a whole."""

import ast
import re
import subprocess
import tomllib

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from mammo_utils.io import read_json
from mammo_utils.parameters import NOTEBOOKS
from mammo_utils.workflow.publish import END, RESULTS, START, altered_figures, describe_results
from tests.conftest import CHECKOUT

PACKAGE = CHECKOUT / "mammo_utils"
LINE = (
    "synthetic",
    "data",
    "images",
    "models",
    "training",
    "evaluation",
    "plots",
    "reading_room",
    "predict",
    "workflow",
)
CONDA = {"torch": ("pytorch-gpu", "pytorch-cpu"), "matplotlib": ("matplotlib-base",)}
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def notebook(name):
    return nbformat.read(CHECKOUT / "notebooks" / f"{name}.ipynb", as_version=4)


def parameter_cell(name):
    (cell,) = [c for c in notebook(name).cells if "parameters" in c.metadata.get("tags", [])]
    return cell.source


def listed_files():
    done = subprocess.run(["git", "-C", str(CHECKOUT), "ls-files"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [CHECKOUT / name for name in done.stdout.split("\n") if name and (CHECKOUT / name).is_file()]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_cell_and_model_agree(name):
    """Same names, in the same order, of the same type, with the same defaults; single-line literals."""
    model, lines = NOTEBOOKS[name], parameter_cell(name).splitlines()
    fields = {}
    for line in lines:
        assert line.count("=") == 1 and "  # " in line, f"{line!r}: a literal and a comment, which papermill can read"
        (node,) = ast.parse(line).body
        fields[node.target.id] = (ast.unparse(node.annotation), ast.literal_eval(node.value))
    assert list(fields) == list(model.model_fields)
    for field, (annotation, default) in fields.items():
        assert model.model_fields[field].default == default
        kind = {"str": str, "int": int, "float": float, "bool": bool, "list[str]": list}[annotation]
        assert isinstance(default, kind)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_carry_no_outputs_and_freeze_their_parameters(name):
    cells = [c for c in notebook(name).cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in cells)
    assert "parameters" in cells[0].metadata["tags"] and f'freeze_parameters("{name}", globals())' in cells[1].source
    assert notebook(name).cells[0].source.startswith("# ") and "What this shows" in notebook(name).cells[-1].source


def test_data_flow_one_way():
    """data → images → models → training → evaluation → plots → reading_room →
    predict → workflow: no import goes upstream."""
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).parts[0]
        if here not in LINE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                there = (name or "").split(".")
                if there[0] == "mammo_utils" and len(there) > 1 and there[1] in LINE:
                    assert LINE.index(there[1]) <= LINE.index(here), f"{path.name} imports {name}"


def test_the_package_does_not_import_the_benchmarks():
    assert not [path for path in PACKAGE.rglob("*.py") if re.search(r"(import|from) benchmarks", path.read_text())]


def test_modules_stay_small():
    sizes = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not [str(path) for path, lines in sizes.items() if lines > 400]


def bounds(requirement):
    return {str(part) for part in requirement.specifier}


def test_the_environments_name_what_pyproject_names():
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    extras = PROJECT["optional-dependencies"]
    wanted += [Requirement(text) for name in ("demo", "test") for text in extras[name]]
    (mamba,) = [Requirement(text) for text in extras["cuda"]]
    for file, more in (("environment.yml", [mamba]), ("environment-cpu.yml", [])):
        lines = yaml.safe_load((CHECKOUT / file).read_text())["dependencies"]
        pip = next(line["pip"] for line in lines if isinstance(line, dict))
        found = {}
        for line in [*(line for line in lines if isinstance(line, str)), *pip]:
            if line not in ("-e .", "pip"):
                found[Requirement(line).name] = bounds(Requirement(line))
        assert found.pop("python") == bounds(Requirement(f"python{PROJECT['requires-python']}"))
        for requirement in wanted + more:
            names = CONDA.get(requirement.name, (requirement.name,))
            (name,) = [n for n in names if n in found]
            assert found.pop(name) == bounds(requirement), f"{file}: {name}"
        assert not found, f"{file} names more than pyproject: {found}"


def test_binder_has_the_environment_of_a_cpu_and_containers_install_as_the_readme_does():
    """Binder installs the package itself by binder/postBuild, because paths in its file would start at its folder."""
    names = ("environment-cpu.yml", "binder/environment.yml")
    cpu, binder = ((CHECKOUT / name).read_text().splitlines() for name in names)
    assert [line for line in cpu[1:] if line.strip() != "- -e ."] == binder[1:]
    assert "pip install --no-deps -e ." in (CHECKOUT / "binder" / "postBuild").read_text()
    install = re.search(r"pip install -q (.+?) && ", (CHECKOUT / "README.md").read_text(encoding="utf-8"))[1]
    for name in ("Dockerfile", ".devcontainer/devcontainer.json"):
        assert install in (CHECKOUT / name).read_text().replace("'", '"'), name


def test_the_lock_pins_all_and_names_no_address():
    text = (CHECKOUT / "requirements.lock").read_text()
    assert "://" not in text and "--" not in text
    pins = [Requirement(line) for line in text.splitlines() if line.strip()]
    assert all(re.fullmatch(r"==[^=,*]+", str(pin.specifier)) for pin in pins)
    by_name = {}
    for pin in pins:
        by_name.setdefault(pin.name.lower(), []).append(Version(str(pin.specifier)[2:]))
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["demo"], *extras["test"]]:
        requirement = Requirement(text)
        versions = by_name[requirement.name.lower()]
        assert all(requirement.specifier.contains(version) for version in versions), text


def test_no_file_names_a_machine():
    """Neither a home folder nor a temporary one, nor the host of a package registry."""
    pattern = re.compile(r"(/home/[a-z]|/root/|/Users/[a-z]|/tmp/[a-z]|/work/|pypi\.org|pythonhosted)")
    for path in listed_files():
        if path.suffix in (".py", ".md", ".yml", ".yaml", ".ipynb", ".toml", ".lock", ".json", ".cff", ""):
            if path != CHECKOUT / "tests" / "test_project.py":
                assert not pattern.search(path.read_text(encoding="utf-8")), path.name


def test_the_published_figures_are_the_files_that_the_study_wrote():
    """Whether they are stale is a warning of `python -m mammo_utils.workflow.publish --check`."""
    assert altered_figures(CHECKOUT / "figures") == []


def test_the_readme_shows_the_published_results():
    """`python -m mammo_utils.workflow.publish` writes both."""
    text, results = (CHECKOUT / "README.md").read_text(encoding="utf-8"), read_json(CHECKOUT / "figures" / RESULTS)
    assert "\n".join([START, describe_results(results), END]) in text
    assert re.findall(r"\((figures/[^)]+\.png)\)", text)


def test_the_tree_has_every_module_of_the_package_and_no_other():
    tree = re.search(r"```\n(mammo_utils/.+?)```", (CHECKOUT / "docs" / "code.md").read_text("utf-8"), re.S)[1]
    named = re.findall(r"\w+\.py", tree)
    modules = {p.name for p in PACKAGE.rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(named) == {name for name in modules if not (PACKAGE / "models" / "kernels" / name).is_file()}


def test_public_functions_with_more_than_two_arguments_document_each():
    """In Google style, so that documentation tools show them; ruff's D rules check the rest."""
    missing = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "numba_kernel.py":
            continue  # its arrays are the same in every function and described once, on top
        tree = ast.parse(path.read_text())
        owners = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")]
        for function in (node for owner in owners for node in owner.body if isinstance(node, ast.FunctionDef)):
            a = function.args
            names = {arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)} - {"self", "cls", "ctx"}
            if function.name[0] == "_" or len(names) <= 2 or "ctx" in [arg.arg for arg in a.args]:
                continue  # private; simple; a torch.autograd.Function, documented as a class
            section = (ast.get_docstring(function) or "").partition("Args:\n")[2]
            described = set(re.findall(r"^    (\w+):", section, re.M))
            if names - described:
                missing.append(f"{path.relative_to(CHECKOUT)} {function.name}: {', '.join(sorted(names - described))}")
    assert not missing


def test_the_papermill_engine_is_where_pyproject_registers_it():
    from papermill.engines import papermill_engines

    from mammo_utils.workflow.engine import StudyEngine

    ((name, place),) = PROJECT["entry-points"]["papermill.engine"].items()
    assert place == f"{StudyEngine.__module__}:{StudyEngine.__name__}"
    assert papermill_engines.get_engine(name).__name__ == StudyEngine.__name__

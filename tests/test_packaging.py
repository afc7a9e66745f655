"""The package that is installed is the one that lies here, whole, and typed."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
#: What a build reads. It is copied, so that no build folder of an earlier version gets into the wheel.
SOURCES = ("cli", "core", "export", "targets", "profiling")
FILES = ("pyproject.toml", "README.md", "LICENSE", "setup.py", "MANIFEST.in")


def shell(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def package_name(folder: Path) -> str:
    parts = folder.relative_to(ROOT).parts
    return ".".join(("spikeport", *(parts[1:] if parts[0] == "cli" else parts)))


def test_every_folder_with_an_init_is_listed_as_a_package():
    folders = {init.parent for source in SOURCES for init in (ROOT / source).rglob("__init__.py")}
    found = {package_name(folder): folder.relative_to(ROOT).as_posix() for folder in folders}
    listed = PROJECT["tool"]["setuptools"]
    assert dict(listed["package-dir"]) == found
    assert sorted(listed["packages"]) == sorted(found)


def test_no_folder_at_the_root_shadows_the_package():
    assert not (ROOT / "spikeport").exists()
    assert not (ROOT / "spikeport.py").exists()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the package, installed from its wheel."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    # Compiled already where they are newer than their sources: the build takes those from its own folder.
    built = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "spikeport"
    for library in (file for name in SOURCES for file in (ROOT / name).rglob("*.so")):
        (built / library.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, built / library.relative_to(ROOT))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    shell(*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", folder / "wheel", cwd=folder)
    (wheel,) = (folder / "wheel").glob("spikeport-*.whl")
    shell(*pip, "install", "--no-deps", "--target", folder / "site", wheel, cwd=folder)
    return folder / "site"


def below(folder: Path, pattern: str) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob(pattern) if "__pycache__" not in p.parts}


@pytest.mark.parametrize("pattern", ["*.py", "*.html", "py.typed", "*.so"])
def test_the_wheel_leaves_no_file_behind(installed, pattern):
    """Libraries are those of the installation that runs the tests: none where it had no compiler."""
    wanted = below(ROOT / "cli", pattern)
    for source in SOURCES[1:]:
        wanted |= {f"{source}/{file}" for file in below(ROOT / source, pattern)}
    assert below(installed / "spikeport", pattern) == wanted
    assert wanted or pattern == "*.so"


def test_the_wheel_holds_what_it_needs_beside_its_modules(installed):
    assert (installed / "spikeport" / "py.typed").is_file()
    assert (installed / "spikeport" / "profiling" / "report.html").is_file()


IMPORT_ALL = """
import importlib, pkgutil, sys
import spikeport
site = sys.argv[1]
names = [m.name for m in pkgutil.walk_packages(spikeport.__path__, "spikeport.")]
# kernels._cpu is a library of C functions that ctypes opens, not a Python module.
names = [name for name in names if not name.endswith(("__main__", "._cpu"))]
for name in names:
    if ".lava.worker" in name:  # runs in the Lava environment, on another Python
        continue
    module = importlib.import_module(name)
    assert module.__file__.startswith(site), (name, module.__file__)
print(len(names), spikeport.__version__)
"""


def test_every_module_imports_from_the_installed_copy(installed, tmp_path):
    out = shell(sys.executable, "-c", IMPORT_ALL, installed, cwd=tmp_path, PYTHONPATH=str(installed))
    count, version = out.split()[-2:]
    packages = PROJECT["tool"]["setuptools"]["packages"]
    modules = [f for f in below(installed / "spikeport", "*.py") if not f.endswith(("__init__.py", "__main__.py"))]
    assert int(count) == len(modules) + len(packages) - 1  # spikeport itself is not below spikeport
    assert version == PROJECT["project"]["version"]


def test_mypy_finds_nothing_and_reads_every_file(installed, tmp_path):
    out = shell(
        *(sys.executable, "-m", "mypy", "-p", "spikeport"),
        *("--config-file", ROOT / "pyproject.toml", "--cache-dir", tmp_path / "cache"),
        cwd=tmp_path,
        MYPYPATH=str(installed),
    )
    (checked,) = re.findall(r"no issues found in (\d+) source files", out)
    assert int(checked) == len(below(installed / "spikeport", "*.py"))


def test_importing_spikeport_does_not_import_torch(tmp_path):
    code = "import sys, spikeport; assert 'torch' not in sys.modules; spikeport.LIF; assert 'torch' in sys.modules"
    shell(sys.executable, "-c", code, cwd=tmp_path)


def test_every_public_name_is_there():
    import spikeport

    names = set(spikeport.__all__) - {"__version__"}
    assert {"LIF", "train", "load_run", "to_onnx", "to_nir", "check", "compile", "simulate", "report"} <= names
    assert all(callable(getattr(spikeport, name)) for name in names)
    assert names <= set(dir(spikeport))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = spikeport.nonsense


def test_no_public_name_is_a_package():
    import spikeport

    packages = {name.removeprefix("spikeport.") for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert not packages & set(spikeport.__all__)


#: Folder -> the layers it may import; the command line, at the package's root, may import all of them.
LEFT = {
    "core": {"core"},
    "export": {"core", "export"},
    "targets": {"core", "export", "targets"},
    "profiling": {"core", "export", "targets", "profiling"},
}
#: Lava's worker runs in another Python, which has no spikeport: only what lies beside it.
WORKER = ROOT / "targets/loihi/lava/worker"
#: Targets take NIR and ONNX files; these run a PyTorch model beside its program: training with the chip's arithmetic,
#: and the comparison with float.
TAKE_MODELS = {ROOT / "targets/loihi/qat.py", ROOT / "targets/loihi/against_float.py"}


def imports(file: Path) -> set[str]:
    """What a file imports, wherever in it; relative names begin with their dots."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (f"{node.module}." if node.module else "")
            found |= {module + alias.name for alias in node.names}
    return found


def allowed(name: str, file: Path, layer: str) -> bool:
    top, _, rest = name.partition(".")
    if file.parent == WORKER:
        return top != "spikeport" and not rest.startswith(".")
    return top not in ("", "spikeport") or rest.split(".")[0] in LEFT[layer]


@pytest.mark.parametrize("layer", LEFT)
def test_a_layer_imports_only_layers_to_its_left(layer):
    found = [(file, name) for file in (ROOT / layer).rglob("*.py") for name in imports(file)]
    wrong = [f"{file.relative_to(ROOT)}: {name}" for file, name in found if not allowed(name, file, layer)]
    assert found
    assert wrong == []


def test_targets_take_no_pytorch_model():
    tracing = {f for f in (ROOT / "targets").rglob("*.py") if any("export.trace" in name for name in imports(f))}
    assert tracing == TAKE_MODELS

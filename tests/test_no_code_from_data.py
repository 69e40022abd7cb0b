"""Files of others are data: nothing in precisionlm unpickles, evaluates, or hands a shell a text."""

import ast
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).resolve().parents[1] / "precisionlm").rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "tarfile"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "torch.load"),
    *("pd.read_pickle", "pd.eval", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
    *("importlib.import_module", "importlib.util.spec_from_file_location", "shutil.unpack_archive", "jinja2.Template"),
}
# A law's Python file that a user names, and the module of figures that a law of ours names.
ALLOWED = {
    ("analysis/laws/own.py", "importlib.util.spec_from_file_location"),
    ("analysis/figures/papers.py", "importlib.import_module"),
}


def found_in(tree: ast.AST) -> list[str]:
    """What is not to be there: modules, calls, and arguments of calls."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] in MODULES]
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            found += [name] if name in CALLS else []
            found += [f"{name} shell"] if given.get("shell", "False") != "False" else []
            found += [f"{name} trust"] if given.get("trust_remote_code", "False") != "False" else []
            loads = name.split(".")[-1] == "load" and name.split(".")[0] in ("np", "numpy")
            found += [f"{name} pickle"] if loads and given.get("allow_pickle") != "False" else []
        elif isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            found += [
                f"{node.name}: {base}" for base in bases & {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"}
            ]
    return found


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from marshal import loads", "eval(x)", "os.system(x)", "run(x, shell=True)", "np.load(f)",
     "yaml.load(x)", "torch.load(f)", "class A(yaml.FullLoader): pass", "load_dataset(x, trust_remote_code=True)"],
)  # fmt: skip
def test_the_search_finds(text):
    assert len(found_in(ast.parse(text))) == 1


def test_nothing_runs_what_it_reads():
    root = SOURCES[0].parents[0]
    found = {(str(path.relative_to(root)), what) for path in SOURCES for what in found_in(ast.parse(path.read_text()))}
    assert found == ALLOWED

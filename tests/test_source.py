"""Fingerprints: they change when, and only when, code changes that a job runs; reading them imports no torch."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project import forget

from ddpm.pipeline import config, fingerprints, source
from ddpm.pipeline.registry import known
from ddpm.pipeline.stage import BASELINES
from ddpm.pipeline.stages import AGGREGATES, STAGES

ROOT = Path(__file__).parent.parent
Jobs = set[tuple[str, str]]
Codes = dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Codes]:
    """The package as it is now, and the code of every job."""
    copy = tmp_path_factory.mktemp("pristine") / "ddpm"
    shutil.copytree(ROOT / "ddpm", copy, ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "ROOT", copy)
        found = codes()
    forget()
    return copy, found


@pytest.fixture
def before(pristine: tuple[Path, Codes]) -> Codes:
    """The code of every job of the unchanged package."""
    return pristine[1]


@pytest.fixture
def package(pristine: tuple[Path, Codes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that fingerprints are read from."""
    copy = tmp_path / "ddpm"
    shutil.copytree(pristine[0], copy)
    monkeypatch.setattr(source, "ROOT", copy)
    forget()
    yield copy
    forget()


def codes() -> Codes:
    """The code of every job of the default configuration, by stage and name."""
    forget()
    found = config.check(config.read(ROOT / "config.yaml"))
    names = [("data", ""), ("classifier", ""), ("table", ""), ("figures", "")]
    names += [("train", n) for n in found.networks] + [("likelihood", n) for n in found.names["likelihood"]]
    names += [("sample", n) for n in found.runs] + [("fidelity", n) for n in [*found.runs, *BASELINES]]
    return {(stage, name): found.job(stage, name)[1] for stage, name in names}


def changed(before: Codes) -> Jobs:
    """The jobs whose code is no longer what it was."""
    after = codes()
    assert after.keys() == before.keys()
    return {job for job in before if after[job] != before[job]}


def insert(path: Path, where: str, statement: str) -> None:
    """Put a statement (or comment) first into a function or class, after its docstring."""
    text, body = path.read_text(encoding="utf-8"), ast.parse(path.read_text(encoding="utf-8")).body
    for name in where.split("."):
        node = next(n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name)
        body = node.body
    first = body[1] if ast.get_docstring(node) is not None and len(body) > 1 else body[0]
    number = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
    lines = text.splitlines()
    lines.insert(number - 1, " " * first.col_offset + statement)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Redocument(ast.NodeTransformer):
    """Another docstring wherever there is one, and one where there is none."""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            has = ast.get_docstring(node) is not None
            node.body = [ast.Expr(ast.Constant("Something else.")), *node.body[has:]]
        return node


class Edit(ast.NodeTransformer):
    """Another statement first in every function and method."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        has = ast.get_docstring(node) is not None
        node.body = [*node.body[:has], ast.Pass(), *node.body[has:]]
        return node


def comments(text: str) -> str:
    """A comment and an empty line before every definition, and a comment at the end."""
    lines = []
    for line in text.splitlines():
        if line.startswith(("def ", "class ", "@", "    def ")):
            lines += ["", line[: len(line) - len(line.lstrip())] + "# Another comment."]
        lines.append(line)
    return "\n".join([*lines, "# The end."])


def layout(text: str) -> str:
    """The module as Python prints it: no comments, other lines, other quotes."""
    return ast.unparse(ast.parse(text))


def docstrings(text: str) -> str:
    """Other docstrings everywhere."""
    return ast.unparse(ast.fix_missing_locations(Redocument().visit(ast.parse(text))))


# ---- what does not count ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rewrite", [comments, layout, docstrings])
def test_comments_layout_and_docstrings_do_not_count(
    package: Path, before: Codes, rewrite: Callable[[str], str]
) -> None:
    """The whole package rewritten without a change of meaning has the same fingerprints."""
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert rewrite(text) != text or not text.strip()
        path.write_text(rewrite(text), encoding="utf-8")
    assert changed(before) == set()


def test_a_copied_folder_has_the_same_fingerprints(package: Path, before: Codes) -> None:
    """Where the package lies does not count."""
    assert package.is_relative_to(source.ROOT) and ROOT not in package.parents
    assert changed(before) == set()


def test_stages_differ(before: Codes) -> None:
    """No two stages share a fingerprint."""
    one = {stage: code for (stage, _), code in before.items()}
    assert len(set(one.values())) == len(one) == 8
    assert all(len(code) == 16 and int(code, 16) >= 0 for code in one.values())


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (
            "samplers/singlestep.py",
            "@dataclass(frozen=True)\nclass Euler(DDIM):\n    method = 'euler'\n    extra: float = 1.0\n",
        ),
        ("objectives.py", "class Other(Target):\n    method = 'other'\n"),
        ("schedules.py", "@dataclass(frozen=True)\nclass Sine(Cosine):\n    method = 'sine'\n"),
        ("rng.py", "def unused() -> int:\n    return 3\n"),
    ],
)
def test_a_new_method_reruns_nothing(package: Path, before: Codes, module: str, text: str) -> None:
    """Adding a class beside the others leaves every job as it was, and the configuration can name it."""
    with (package / module).open("a", encoding="utf-8") as f:
        f.write("\n\n" + text)
    assert changed(before) == set()
    if module == "samplers/singlestep.py":
        assert known("sampler")["euler"].parameters.keys() == {"steps", "spacing", "eta", "extra"}


def test_a_network_that_no_job_uses_does_not_count(package: Path, before: Codes) -> None:
    """The perceptron is in no cell of the default grid."""
    insert(package / "networks" / "mlp.py", "MLP.forward", "pass")
    assert changed(before) == set()


# What a stage's function reaches of the pipeline: it reads and writes files with it.
COMPUTING = {"run", "checkpoint", "records", "folders", "parallel", "imports"}


def test_planning_does_not_count(package: Path, before: Codes) -> None:
    """A statement in every function of the modules that plan touches what is made of all records, and no result."""
    edited = [path for path in (package / "pipeline").glob("*.py") if path.stem not in COMPUTING]
    assert {"grid", "fingerprints", "source", "status", "stage", "stages", "layout"} <= {p.stem for p in edited}
    for path in edited:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        path.write_text(ast.unparse(ast.fix_missing_locations(Edit().visit(tree))), encoding="utf-8")
    assert changed(before) == {("table", ""), ("figures", "")}


@pytest.mark.parametrize("entry", [s.entry for s in STAGES.values() if s.name not in AGGREGATES], ids=lambda e: e[0])
def test_a_stage_reaches_no_planning(entry: tuple[str, str]) -> None:
    """Those too that the default grid has no job of."""
    modules = {module for module, _ in fingerprints.closure(frozenset({entry}))}
    inner = {module.split(".")[2] for module in modules if module.startswith("ddpm.pipeline.")}
    assert "run" in inner and inner <= COMPUTING


# ---- what counts ------------------------------------------------------------------------------------------


def uses(stages: str, part: str = "", number: int = 0) -> Callable[[str, str], bool]:
    """Jobs of some stages with this part in their name."""
    return lambda stage, name: stage in stages.split() and (not part or name.split("/")[number] == part)


CHANGES = {
    "one sampler": ("samplers/singlestep.py", "DDIM.step", uses("sample", "ddim", 3)),
    "the other sampler": ("samplers/singlestep.py", "Ancestral.step", uses("sample", "ancestral", 3)),
    "all samplers": ("samplers/sampler.py", "Sampler.times", uses("sample figures")),
    "guidance": ("guidance.py", "ClassifierFree.predict", None),
    "one schedule": ("schedules.py", "Cosine.betas", uses("train sample likelihood", "cosine", 1)),
    "the other schedule": ("schedules.py", "Linear.betas", uses("train sample likelihood", "linear", 1)),
    "one target": ("objectives.py", "PosteriorMean.coefficients", uses("train sample likelihood", "mu", 0)),
    "one weighting": ("objectives.py", "Bound.of_x0", uses("train", "mu", 0)),
    "a weighting that is not used": ("objectives.py", "EDM.of_x0", uses("")),
    "one variance": ("objectives.py", "Learned.split", uses("train sample likelihood", "learned", 0)),
    "a distribution of times": ("times.py", "Uniform.draw", uses("train")),
    "a distribution of times that is not used": ("times.py", "Importance.draw", uses("")),
    "a matching that is not used": ("matching.py", "Sliced.error", uses("")),
    "the network": ("networks/unet.py", "ResidualBlock.forward", uses("train sample likelihood")),
    "what the network imports": (
        "networks/embedding.py",
        "ConditionEmbedding.forward",
        uses("train sample likelihood"),
    ),
    "the classifier": ("networks/classifier.py", "Classifier.features", uses("classifier fidelity")),
    "one dataset": ("datasets/digits.py", "Digits.load", uses("data")),
    "a dataset that is not used": ("datasets/mnist.py", "MNIST.load", uses("")),
    "training": ("stages/train.py", "learning_rate", uses("train")),
    "the bound": ("stages/likelihood.py", "stratified_times", uses("likelihood")),
    "the tables": ("tables/markdown.py", "markdown", uses("table")),
    "the space": ("spaces.py", "Pixels.decode", uses("data classifier train sample likelihood fidelity")),
    "one metric": ("metrics/labels.py", "Diversity.compute", uses("fidelity")),
    "a metric that these data do not have": ("metrics/sliced.py", "SlicedWasserstein.compute", uses("")),
    "the extractor": ("metrics/extractors.py", "TrainedClassifier.__call__", uses("fidelity")),
    "an extractor that is not used": ("metrics/extractors.py", "Inception.__call__", uses("")),
}


@pytest.mark.parametrize(("module", "where", "which"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_code_touches_exactly_the_jobs_that_run_it(
    package: Path, before: Codes, module: str, where: str, which: Callable[[str, str], bool] | None
) -> None:
    """A statement inside one function reruns the jobs that can reach it, and no other."""
    insert(package / module, where, "pass")
    if which is None:  # three names share the method
        expected = {(s, n) for s, n in before if s == "sample" and n.split("/")[2].startswith("cfg")}
    else:
        expected = {(s, n) for s, n in before if which(s, n)}
    # The pictures show networks and samplers of every kind: they may change with all of them.
    assert changed(before) - {("figures", "")} == expected - {("figures", "")}


def test_the_extractor_that_a_job_names_counts(package: Path) -> None:
    """`identity`, which nothing names but the configuration."""

    def found() -> dict[str, str]:
        forget()
        toy = config.check(config.read(ROOT / "config.yaml", ROOT / "workflow" / "config" / "toy.yaml"))
        return {stage: toy.job(stage, name)[1] for stage, name in (("fidelity", "noise"), ("classifier", ""))}

    before = found()
    insert(package / "metrics" / "extractors.py", "Identity.__call__", "pass")
    after = found()
    assert after["fidelity"] != before["fidelity"] and after["classifier"] == before["classifier"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for _ in range(10):", "for _ in range(9):"),
        ("_WEYL = (0x9E3779B9,", "_WEYL = (0x9E3779BA,"),
    ],
    ids=["function", "constant"],
)
def test_a_helper_far_below_counts(package: Path, before: Codes, old: str, new: str) -> None:
    """The generator's rounds and constants reach whatever draws from it, and nothing else."""
    path = package / "rng.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    found = {stage for stage, _ in changed(before)} - {"figures"}
    # The classifier only permutes, with torch's own generator.
    assert found == {"train", "sample", "likelihood", "fidelity"}


def test_a_parameters_default_counts(package: Path, before: Codes) -> None:
    """A class's fields are part of its code."""
    path = package / "samplers/singlestep.py"
    text = path.read_text(encoding="utf-8")
    assert text.count("eta: Fraction = 0.0") == 1
    path.write_text(text.replace("eta: Fraction = 0.0", "eta: Fraction = 0.5"), encoding="utf-8")
    assert changed(before) - {("figures", "")} == {
        (s, n) for s, n in before if s == "sample" and n.split("/")[3] == "ddim"
    }


# ---- how names are followed -------------------------------------------------------------------------------

FORMS = {
    "from module": "from ddpm.b import helper\ndef entry(): return helper()",
    "under another name": "from ddpm.b import helper as h\ndef entry(): return h()",
    "module": "from ddpm import b\ndef entry(): return b.helper()",
    "module under another name": "from ddpm import b as c\ndef entry(): return c.helper()",
    "dotted module under another name": "import ddpm.b as c\ndef entry(): return c.helper()",
    "dotted module": "import ddpm.b\ndef entry(): return ddpm.b.helper()",
    "relative": "from .b import helper\ndef entry(): return helper()",
    "relative module": "from . import b\ndef entry(): return b.helper()",
    "inside the function": "def entry():\n    from ddpm.b import helper\n    return helper()",
    "through another module": "from ddpm.c import helper\ndef entry(): return helper()",
    "second hand": "from ddpm.b import helper\ndef middle(): return helper()\ndef entry(): return middle()",
    "constant": "from ddpm.b import helper\nTABLE = {'a': helper}\ndef entry(): return TABLE['a']()",
    "default argument": "from ddpm.b import helper\ndef entry(f=helper): return f()",
    "decorator": "from ddpm.b import helper\n@helper\ndef entry(): return 1",
    "base class": "from ddpm.b import Base\nclass entry(Base): pass",
    "effect of importing": "from ddpm.b import helper\nSTATE = []\nSTATE.append(helper())\ndef entry(): return STATE",
}
HELPER = "def helper(f=None): return {value}\nclass Base:\n    x = {value}\ndef other(): return {other}\n"


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_a_name_is_followed_however_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A change behind the name changes the fingerprint; a change beside it does not."""
    monkeypatch.setattr(source, "ROOT", tmp_path)
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "c.py").write_text("from ddpm.b import helper\n")
    found = []
    for value, other in ((1, 1), (1, 2), (2, 2)):
        (tmp_path / "b.py").write_text(HELPER.format(value=value, other=other))
        forget()
        found.append(fingerprints.fingerprint(frozenset({("ddpm.a", "entry")})))
    forget()
    assert found[0] == found[1]
    assert found[1] != found[2]


# ---- no torch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["import ddpm", "import ddpm.cli, ddpm.pipeline.status, ddpm.pipeline.preflight"])
def test_what_snakemake_imports_loads_no_torch(statement: str) -> None:
    """Every cluster job parses the Snakefile again: none of it waits for torch, numpy or pandas."""
    heavy = "{m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'pandas', 'sklearn', 'torchvision'}"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; {statement}; print(sorted({heavy}))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


def test_a_whole_grid_is_expanded_without_torch() -> None:
    """Checking the configuration and fingerprinting every job imports no torch either."""
    script = (
        "import sys; from ddpm.pipeline import config; g = config.check(config.read('config.yaml'));"
        "[g.job(s, n) for n in g.runs for s, n in g.needed('fidelity', n)]; g.job('table');"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_importing_the_package_is_quick() -> None:
    """Under 0.2 s, the best of three."""
    script = "import time; t = time.perf_counter(); import ddpm; print(time.perf_counter() - t)"
    seconds = [
        float(
            subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        )
        for _ in range(3)
    ]
    assert min(seconds) < 0.2

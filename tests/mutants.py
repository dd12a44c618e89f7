"""Mutation tests: every line of the mathematics, the metrics and the stages is broken, and the tests must notice.

`make mutants` runs this over all modules below, `make mutants ONLY=ddpm/bound.py` over some. mutmut does the work, one
module at a time in a copy under build/mutants/, with the tests that belong to the module; those that execute the
broken function are run, the fastest first, until one fails. With `--sample N` at most N mutants of a module, drawn at
random, stand for all.
"""

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The tests of tests/test_*.py that belong to each module.
MODULES = {
    "ddpm/schedules.py": ["schedules", "continuous", "types", "bound", "flow_matching"],
    "ddpm/forward.py": ["schedules", "continuous", "types", "bound", "defaults", "third_family"],
    "ddpm/calculus.py": ["defaults"],
    "ddpm/matching.py": ["objectives"],
    "ddpm/objectives.py": ["objectives", "weightings", "types", "flow_matching"],
    "ddpm/samplers/sampler.py": ["samplers", "types", "continuous"],
    "ddpm/samplers/singlestep.py": ["samplers", "types", "orders", "diffusers"],
    "ddpm/samplers/multistep.py": ["orders", "diffusers"],
    "ddpm/guidance.py": ["guidance", "guide"],
    "ddpm/denoiser.py": ["denoiser", "objectives", "guidance"],
    "ddpm/bound.py": ["bound", "likelihood"],
    "ddpm/probability_flow.py": ["flow", "ode_likelihood"],
    "ddpm/times.py": ["times", "flow_matching"],
    "ddpm/stages/likelihood.py": ["draw", "likelihood", "bound", "ode_likelihood", "checkpoint"],
    "ddpm/stages/ode_likelihood.py": ["ode_likelihood"],
    "ddpm/stages/fidelity.py": ["fidelity", "measured_stages"],
    "ddpm/stages/classifier.py": ["extractors", "measured_stages"],
    "ddpm/spaces.py": ["spaces", "bound", "baselines"],
    "ddpm/metrics/extractors.py": ["extractors", "dinov2", "metrics", "measured_stages"],
    "ddpm/metrics/evaluator.py": ["fidelity", "extractors", "metrics", "toplines"],
    "ddpm/metrics/fid.py": ["fidelity"],
    "ddpm/metrics/labels.py": ["fidelity"],
    "ddpm/metrics/sliced.py": ["toy"],
    "ddpm/metrics/store.py": ["store"],
    "ddpm/metrics/intervals.py": ["intervals"],
    "ddpm/metrics/kid.py": ["measures"],
    "ddpm/metrics/neighbours.py": ["measures"],
    "ddpm/metrics/memorisation.py": ["measures"],
    "ddpm/metrics/scores.py": ["measures"],
    "ddpm/metrics/distances.py": ["distances", "fidelity", "measured_stages", "measures"],
    "ddpm/metrics/toplines.py": ["toplines"],
    "ddpm/tables/winners.py": ["winners"],
    "ddpm/baselines.py": ["baselines"],
    "ddpm/stages/guide.py": ["guide", "stages"],
    "ddpm/stages/train.py": ["terminal", "stages", "training", "training_parts"],
    "ddpm/stages/sample.py": ["sampling", "verdict", "stages", "guide", "checkpoint", "training"],
    "ddpm/terminal.py": ["terminal"],
    "ddpm/pipeline/verdict.py": ["verdict"],
    "ddpm/networks/embedding.py": ["networks"],
    "ddpm/networks/unet.py": ["networks"],
    "ddpm/networks/mlp.py": ["networks"],
    "ddpm/networks/classifier.py": ["networks"],
}
# Lines whose expressions only words for people come from.
WORDS = [r"\braise ", r"\brun\.progress\(", r"\brun\.phase\("]


def undecorated(source: str) -> str:
    """The same program with `f = d(f)` below `def f` for `@d` above it: mutmut leaves decorated functions alone."""
    lines = source.splitlines()
    found = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and len(n.decorator_list) == 1]
    for function in sorted(found, key=lambda n: -n.lineno):
        (decorator,) = function.decorator_list
        if ast.unparse(decorator) not in ("classmethod", "staticmethod"):
            after = f"{function.name} = ({ast.unparse(decorator)})({function.name})"
            lines.insert(function.end_lineno, " " * function.col_offset + after)
            del lines[decorator.lineno - 1]
    return "\n".join(lines) + "\n"


def lay(folder: Path, module: str) -> None:
    """A copy of what the tests read, and mutmut's settings for one module."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("ddpm", "tests", "workflow"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "config.yaml", folder)
    (folder / module).write_text(undecorated((ROOT / module).read_text(encoding="utf-8")), encoding="utf-8")
    settings = {
        "source_paths": ["ddpm"],
        "only_mutate": [module],
        "also_copy": ["config.yaml", "workflow"],
        "do_not_mutate_patterns": WORDS,
        "pytest_add_cli_args": ["-p", "mutants"],
        "pytest_add_cli_args_test_selection": [f"tests/test_{name}.py" for name in MODULES[module]],
        # Every mutant gets a process of its own, forked from one that has imported torch and run nothing.
        "process_isolation": "forkserver",
        "timeout_multiplier": 5.0,
        "timeout_constant": 5.0,
        "use_git_change_detection": False,
    }
    # A list of strings and a number are written in TOML as in JSON.
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text("\n".join([text, "[tool.mutmut]", *lines, ""]), encoding="utf-8")


def pytest_configure() -> None:
    """In mutmut's processes: what the stages import late is imported once, before a mutant's process is forked."""
    for module in ("sklearn.datasets", "sklearn.model_selection", "torchdiffeq", "torch_fidelity", "pandas"):
        import_module(module)


def pytest_collection_modifyitems(items: list) -> None:
    """In mutmut's processes: what took least time without a mutant goes first, a file's tests together."""
    stats = Path("mutmut-stats.json")
    if stats.exists():
        taken = json.loads(stats.read_text(encoding="utf-8"))["duration_by_test"]
        files: dict[Path, float] = {}
        for item in items:
            files[item.path] = files.get(item.path, 0) + taken.get(item.nodeid, 0)
        items.sort(key=lambda item: (files[item.path], taken.get(item.nodeid, 0)))


def test(module: str, cores: int, sample: int | None) -> tuple[int, list[str]]:
    """The number of mutants that were tested, and the difference that each survivor makes."""
    folder = ROOT / "build" / "mutants" / module.removesuffix(".py").replace("/", ".")
    lay(folder, module)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "tests")}

    def mutmut(*words: str, quiet: bool = True, check: bool = True) -> str:
        command = [str(Path(sys.executable).with_name("mutmut")), *words]
        run = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=quiet)
        if check and run.returncode:
            sys.exit(f"{' '.join(command)}: failed in {folder}\n{run.stdout}{run.stderr}")
        return run.stdout or ""

    def fates() -> dict[str, str]:
        lines = mutmut("results", "--all", "true").splitlines()
        return dict(line.strip().rsplit(": ", 1) for line in lines if "__mutmut_" in line)

    chosen = []
    if sample:
        mutmut("run", "no.such__mutmut_1", check=False)  # makes all mutants, runs none
        names = sorted(fates())
        chosen = random.Random(0).sample(names, min(sample, len(names)))
    mutmut("run", "--max-children", str(cores), *chosen, quiet=not sys.stdout.isatty())
    tested = {name: fate for name, fate in fates().items() if not chosen or name in chosen}
    return len(tested), [mutmut("show", name) for name, fate in tested.items() if fate not in ("killed", "timeout")]


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="ddpm/NAME.py", help="these modules alone")
    parser.add_argument("--sample", type=int, metavar="N", help="at most N mutants of each module, drawn at random")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="mutants tested at once")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - MODULES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: must be of {', '.join(MODULES)}")
    rows, survivors = [], []
    for module in arguments.only or MODULES:
        print(f"{module}: {', '.join(MODULES[module])}", flush=True)
        start = time.monotonic()
        total, alive = test(module, arguments.cores, arguments.sample)
        survivors += alive
        rows.append((module, total, total - len(alive), time.monotonic() - start))
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    print("\n".join(["", *survivors, f"{'module':22} {'mutants':>7} {'killed':>7} {'score':>7} {'seconds':>7}"]))
    for module, total, killed, seconds in rows:
        print(f"{module:22} {total:7} {killed:7} {killed / total:7.1%} {seconds:7.0f}")


if __name__ == "__main__":
    main()

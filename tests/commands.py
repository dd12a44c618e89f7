"""The command in a folder with a tiny configuration, as several files of tests call it."""

import shutil
from pathlib import Path

import pytest
import yaml

from ddpm import cli
from ddpm.pipeline import config
from ddpm.pipeline.layout import Layout

ROOT = Path(__file__).parent.parent


CELL = "eps/linear/none/ddim/seed0"


NETWORK = "eps/linear/unconditional/seed0"


OVERLAY = {
    "results": "out",
    "device": "cpu",
    "network": {"method": "mlp", "width": 8, "multipliers": None, "blocks": None, "attention": None},
    "training": {"steps": 6, "batch": 16, "warmup": 2},
    "schedules": {"linear": {"steps": 100}, "cosine": {"steps": 100}},
    "samplers": {"ancestral": {"steps": 4}, "ddim": {"steps": 4}},
    "grid": [
        {
            "objective": ["eps", "learned"],
            "schedule": ["linear"],
            "guidance": ["none"],
            "sampler": ["ancestral", "ddim"],
        },
        {"objective": ["score"], "schedule": ["linear"], "guidance": ["cfg-w1"], "sampler": ["ddim"]},
    ],
    "sampling": {"images": 24, "batch": 16},
    "classifier": {"width": 4, "features": 8, "epochs": 1},
    "likelihood": {"images": 4, "times": 3},
}


def overlay(**changes: object) -> list[str]:
    """Write the overlay into the current folder; the options that name it."""
    Path("tiny.yaml").write_text(yaml.safe_dump(config.merge(OVERLAY, changes)), encoding="utf-8")
    return ["--configfile", "tiny.yaml"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, as the working directory; what the command sets in the environment is undone."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.delenv("DDPM_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "config.yaml", tmp_path)
    overlay()
    return tmp_path


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one cell up to its fidelity; read only."""
    root = tmp_path_factory.mktemp("sampled")
    grid = config.check(whole())
    for stage, name in [*grid.needed("fidelity", CELL), ("likelihood", NETWORK)]:
        cli.run_stage(stage, *grid.job(stage, name), str(root), "cpu")
    return root


def whole(**changes: object) -> dict:
    """The configuration that the overlay makes of the default one."""
    return config.merge(config.read(ROOT / "config.yaml"), config.merge(OVERLAY, changes))


@pytest.fixture
def done(project: Path, sampled: Path) -> Layout:
    """The working directory with that cell's results."""
    shutil.copytree(sampled, project / "out")
    return Layout(project / "out")


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `ddpm arguments`; progress bars are left out."""
    capsys.readouterr()
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "it/s" not in line]
    return code, out, "\n".join(line for line in lines if "step/s" not in line and "%|" not in line)


def refused(capsys: pytest.CaptureFixture, *arguments: str, code: int = 2) -> str:
    """The message of a command that must fail: short, without a traceback, and with nothing on stdout."""
    found, out, err = run(capsys, *arguments)
    err = "\n".join(line for line in err.splitlines() if not line.endswith(": already there"))
    assert found == code, err
    assert out == ""
    assert err.startswith("ddpm: ") and "Traceback" not in err
    assert len(err.splitlines()) <= 3
    return err

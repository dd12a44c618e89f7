"""What would fail late is said before the first job: each mistake in one line with key, value and cure, all at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project import copy_project, said, snakemake_files

from ddpm import cli
from ddpm.pipeline import config, machine
from ddpm.pipeline.checks import ConfigError
from ddpm.pipeline.registry import known

ROOT = Path(__file__).parent.parent
DEFAULT = config.read(ROOT / "config.yaml")


# ---- what does not fit together ---------------------------------------------------------------------------

OUT = "leave it out (an overlay sets it to null)"
MEAN = "FID needs more images than"
REAL = "the row of real data takes as many from the train split of"
LATE = {
    "heads": (
        "network: {width: 30, attention: [0]}",
        "network.attention: 0, where there are 30 channels (width 30 × multipliers 1); 4 heads share them evenly: "
        "it must be a multiple of 4",
    ),
    "heads of a lower level": (
        "network: {width: 6, multipliers: [2, 3], attention: [0, 1]}",
        "network.attention: 1, where there are 18 channels (width 6 × multipliers 3); 4 heads share them evenly: "
        "it must be a multiple of 4",
    ),
    "level": ("network: {attention: [9]}", "network.attention: 9; it must be below 2, the number of multipliers"),
    "first level too many": (
        "network: {attention: [2]}",
        "network.attention: 2; it must be below 2, the number of multipliers",
    ),
    "images and features": (
        "sampling: {images: 64}",
        f"sampling.images: 64; {MEAN} features, and fidelity.extractor 'classifier' has 64: it must be at least 65",
    ),
    "images and pixels": (
        "{fidelity: {extractor: identity}, sampling: {images: 784}}",
        f"sampling.images: 784; {MEAN} features, and fidelity.extractor 'identity' has 784: it must be at least 785",
        "mnist",
    ),
    "images and Inception": (
        "{fidelity: {extractor: inception}, sampling: {images: 2048}}",
        f"sampling.images: 2048; {MEAN} features, and fidelity.extractor 'inception' has 2048: "
        "it must be at least 2049",
        "mnist",
    ),
    "Inception on digits": (
        "fidelity: {extractor: inception}",
        f"fidelity.extractor: 'inception' has 2048 features; {MEAN} that, but sampling.images is 898 and the train "
        "split of 'digits' holds 898: take an extractor of at most 897",
    ),
    "features and the split": (
        "classifier: {features: 898}",
        f"classifier.features: 898 features; {MEAN} that, but sampling.images is 898 and the train split of 'digits' "
        "holds 898: it must be at most 897",
    ),
    "features and the test split": (
        "{data: {test: 64}, fidelity: {extractor: classifier}, likelihood: {images: 64}, ode_likelihood: {images: 0}}",
        f"classifier.features: 64 features; {MEAN} that, but sampling.images is 2000 and the test split of 'mixture' "
        "holds 64: it must be at most 63",
        "points",
    ),
    "images and the split": (
        "sampling: {images: 899}",
        "sampling.images: 899; the row of real data takes as many from the train split of 'digits': "
        "it must be at most 898",
    ),
    "images and MNIST": (
        "sampling: {images: 60001}",
        "sampling.images: 60001; the row of real data takes as many from the train split of 'mnist': "
        "it must be at most 60000",
        "mnist",
    ),
    "images and points": (
        "data: {train: 1999}",
        "sampling.images: 2000; the row of real data takes as many from the train split of 'mixture': "
        "it must be at most 1999",
        "points",
    ),
    "bound": (
        "likelihood: {images: 900}",
        "likelihood.images: 900; they are taken from the test split of 'digits': it must be at most 899",
    ),
    "bound on MNIST": (
        "likelihood: {images: 10001}",
        "likelihood.images: 10001; they are taken from the test split of 'mnist': it must be at most 10000",
        "mnist",
    ),
    "flow": (
        "ode_likelihood: {images: 2001}",
        "ode_likelihood.images: 2001; they are taken from the test split of 'mixture': it must be at most 2000",
        "points",
    ),
    "one image": (
        "ode_likelihood: {images: 1}",
        "ode_likelihood.images: 1; a standard error takes two: it must be 0 (not measured) or at least 2",
    ),
    "warm-up": (
        "training: {steps: 99}",
        "training.warmup: 100; it must be at most training.steps, 99",
    ),
    "weights of another extractor": (
        "fidelity: {weights: pt_inception.pth}",
        "fidelity.weights: 'pt_inception.pth'; nothing uses it but fidelity.extractor inception or dinov2: "
        "leave it empty",
    ),
    "gamma": (
        "objectives: {eps: {gamma: 5.0}}",
        f"objectives.eps.gamma: 5.0; nothing uses it but weighting min-snr: {OUT}",
    ),
    "sigma_data": (
        "objectives: {eps: {sigma_data: 0.5}}",
        f"objectives.eps.sigma_data: 0.5; nothing uses it but target F, or weighting edm: {OUT}",
    ),
    "vlb_weight of a fixed variance": (
        "objectives: {eps: {vlb_weight: 1}}",
        f"objectives.eps.vlb_weight: 1.0; nothing uses it but variance learned: {OUT}",
    ),
    "vlb_weight of the bound itself": (
        "objectives: {learned: {weighting: vlb}}",
        f"objectives.learned.vlb_weight: 0.001; nothing uses it with weighting vlb: {OUT}",
    ),
    "level_mean": (
        "objectives: {eps: {level_mean: 0.0}}",
        f"objectives.eps.level_mean: 0.0; nothing uses it but times log-normal: {OUT}",
    ),
    "level_std": (
        "objectives: {eps: {times: importance, level_std: 1.0}}",
        f"objectives.eps.level_std: 1.0; nothing uses it but times log-normal: {OUT}",
    ),
    "churn_noise": (
        "samplers: {heun: {churn: 0.0, churn_noise: 1.0}}",
        f"samplers.heun.churn_noise: 1.0; nothing uses it but churn above 0: {OUT}",
    ),
    "churn_min": (
        "samplers: {heun: {churn: 0, churn_min: 0.1}}",
        f"samplers.heun.churn_min: 0.1; nothing uses it but churn above 0: {OUT}",
    ),
    "churn_max": (
        "samplers: {heun: {churn: 0, churn_max: 50}}",
        f"samplers.heun.churn_max: 50.0; nothing uses it but churn above 0: {OUT}",
    ),
    "churn between nothing": (
        "samplers: {heun: {churn_min: 5, churn_max: 1}}",
        "samplers.heun.churn_min: 5.0; it must be at most churn_max, 1.0",
    ),
    "spacing of a solver": (
        "samplers: {adaptive: {method: ode-adaptive, spacing: uniform}}",
        f"samplers.adaptive.spacing: 'uniform'; nothing uses it: {OUT}",
    ),
    "spacing of one level": (
        "samplers: {plain: {method: plain-langevin, spacing: karras}}",
        f"samplers.plain.spacing: 'karras'; nothing uses it: {OUT}",
    ),
    "no end": ("guidances: {cfg-w1: {weight: .inf}}", "guidances.cfg-w1.weight: inf; it must be a finite number"),
    "no number": ("samplers: {ddim: {eta: .nan}}", "samplers.ddim.eta: nan; it must be a finite number"),
    "T": (
        "schedules: {linear: {steps: 10000000000}}",
        "schedules.linear.steps: 10000000000; it must lie in 2 … 1000000",
    ),
    "seed of the split": ("data: {seed: -1}", "data.seed: -1; it must lie in 0 … 4294967295"),
    "seed of the points": ("data: {seed: -1}", "data.seed: -1; it must be at least 0", "points"),
    "modes": (
        "data: {weights: [0.2, 0.3, 0.5]}",
        "data.weights: 3 weights, 2 means, 2 spreads; it must be one of each",
        "points",
    ),
    "shares": ("data: {weights: [0.5, 0.2]}", "data.weights: [0.5, 0.2] sum to 0.7; it must be 1", "points"),
    "no share": ("data: {weights: [1.0, 0.0]}", "data.weights: 0.0; it must lie in 1e-09 … 1", "points"),
    "no width": ("data: {spreads: [1, 0]}", "data.spreads: 0.0; it must be at least 1e-06", "points"),
    "points of space": (
        "data: {means: [[1, 2, 3], [1, 2, 3]]}",
        "data.means: [[1, 2, 3], [1, 2, 3]] is of type list; it must be a list of [float, float]",
        "points",
    ),
    "a name twice": (
        "grid: [{objective: [eps, eps], schedule: [linear], guidance: [none], sampler: [ddim]}]",
        "grid[0].objective: ['eps', 'eps']; its values must be unique, and 'eps' stands there twice",
    ),
    "no cell": (
        "grid: [{objective: [learned], schedule: [linear], guidance: [none], sampler: [ddim, dpm]}]",
        "grid: none of its 2 cells can work; learned/linear/none/ddim: this sampler sets its own variance: the learned "
        "one would not be used",
    ),
    "the project's own folder": (
        "results: ddpm/mine",
        "results: 'ddpm/mine' belongs to the project; it must be a folder of its own, such as results/mine",
    ),
    "tolerance": ("ode_likelihood: {rtol: 1.0e-30}", "ode_likelihood.rtol: 1e-30 is less than the minimum of 1e-14"),
    "exponent": (
        "training: {steps: 1e3}",
        "training.steps: '1e3' is of type str; it must be integer (YAML reads 1e3 as text: write 1000)",
    ),
    "on": (
        "objectives: {on: {target: eps}}",
        "objectives: True is of type bool; it must be string (YAML reads on, off, yes and no as true and false: quote "
        "them)",
    ),
}


@pytest.mark.parametrize("case", LATE.values(), ids=LATE.keys())
def test_a_late_mistake_is_said_early(case: tuple[str, ...]) -> None:
    """One line, and no other, with the key, the value and what would be right."""
    overlay, line, *base = case
    assert said(overlay, *base) == [line]


FINE = {
    "heads": "network: {width: 20, attention: [0, 1]}",
    "heads of the level that attends": "network: {width: 6, multipliers: [1, 2], attention: [1]}",
    "more halvings than pixels": "network: {multipliers: [1, 1, 1, 1, 1, 1], width: 4, attention: [5]}",
    "one image more than features": "sampling: {images: 65}",
    "pixels": "{fidelity: {extractor: identity}, sampling: {images: 65}}",
    "the whole halves": "{likelihood: {images: 899}, ode_likelihood: {images: 899}}",
    "warm-up to the end": "training: {steps: 100}",
    "gamma": "objectives: {eps: {weighting: min-snr, gamma: 3}}",
    "sigma_data of the target": "objectives: {f: {target: F, sigma_data: 0.3}}",
    "sigma_data of the weighting": "objectives: {eps: {weighting: edm, sigma_data: 0.3}}",
    "vlb_weight": "objectives: {eps: {variance: learned, weighting: min-snr, vlb_weight: 0.1}}",
    "levels": "objectives: {eps: {times: log-normal, level_mean: 0.0, level_std: 1.0}}",
    "churn": "samplers: {heun: {churn_min: 0.1, churn_max: 50, churn_noise: 1.003}}",
    "taken back": "objectives: {learned: {weighting: vlb, vlb_weight: null}}",
    "an extractor without weights": "fidelity: {weights: ''}",
    "anchors": "{schedules: {a: &a {method: linear}, b: {<<: *a, steps: 500}}}",
}


@pytest.mark.parametrize("overlay", FINE.values(), ids=FINE.keys())
def test_what_is_right_is_accepted(overlay: str) -> None:
    """The nearest right value to each wrong one."""
    assert said(overlay) == []


def test_a_dataset_of_unknown_size_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that does not declare its shape and halves is checked by its jobs."""
    for name in ("shape", "train", "test"):
        monkeypatch.setitem(known("dataset")["digits"].attributes, name, None)
    assert said("{sampling: {images: 5}, likelihood: {images: 5000}}") == []


def test_mistakes_of_form_content_and_machine_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round: what the schema finds, what the cross-checks find beside it, and what the machine lacks."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    overlay = (
        "{training: {stps: 5, decay: linear, warmup: 4000}, threads: 64, network: {attention: [3]}, "
        "objectives: {eps: {gamma: 1}, v: {target: velocity}}, samplers: {ddim: 5}, seeds: ['0'], "
        "likelihood: {images: x}, ode_likelihood: {images: 5000}, fidelity: {extractor: incepton}}"
    )
    found = [line.split(";")[0].split(" is of")[0] for line in said(overlay, "digits", *machine.checks(cluster=False))]
    assert found == [
        "likelihood.images: 'x'",
        "samplers.ddim: 5",
        "seeds[0]: '0'",
        "training.stps: unknown key",
        "training.decay: 'linear'",
        "objectives.eps.gamma: 1.0",
        "objectives.v.target: 'velocity' is unknown",
        "network.attention: 3",
        "fidelity.extractor: 'incepton' is unknown",
        "ode_likelihood.images: 5000",
        "training.warmup: 4000",
        "threads: 64, but this machine has 2 cores",
    ]


def test_a_mistake_is_not_said_twice() -> None:
    """What the schema or the dataset refuses is no reason for a second complaint about the same value."""
    assert said("sampling: {images: 0}") == ["sampling.images: 0 is less than the minimum of 2"]
    assert said("data: {train: 0}", "points") == ["data.train: 0; it must be at least 1"]
    wrong = said("grid: [{objective: [eps], schedule: [linear], guidance: [none], sampler: ddim}]")
    assert wrong == ["grid[0].sampler: 'ddim' is of type str; it must be array"]


def test_a_check_that_fails_on_a_right_configuration_is_no_mistake_of_the_user() -> None:
    """Only beside a mistake is a check's own failure silent."""

    def broken(_: dict) -> list[str]:
        yield {}["key"]

    with pytest.raises(KeyError):
        config.check(DEFAULT, broken)
    with pytest.raises(ConfigError):
        config.check(config.merge(DEFAULT, {"foo": 1}), broken)


# ---- as a user sees it ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("clone"))


def test_the_command_says_all_at_once(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """`ddpm check`, and a stage by hand before it starts; `ddpm status` of the same tree does not mind the machine."""
    monkeypatch.chdir(clone)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    (clone / "wrong.yaml").write_text("{threads: 9, network: {attention: [4]}, training: {stps: 1}}")
    for command in (["check"], ["train", "eps/linear/unconditional/seed0"]):
        assert cli.main([*command, "--configfile", "wrong.yaml"]) == 2
        assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
            "ddpm: training.stps: unknown key",
            "network.attention: 4",
            "threads: 9, but this machine has 1 cores",
        ]
    (clone / "wide.yaml").write_text("threads: 9")
    assert cli.main(["status", "--configfile", "wide.yaml"]) == 0
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert cli.main(["check", "--configfile", "wide.yaml"]) == 0


def test_snakemake_says_the_same_before_the_first_job(clone: Path) -> None:
    """The same lines, and what its own reading of files does not see; nothing is made."""
    (clone / "wrong.yaml").write_text(
        "{threads: 999, network: {attention: [4]}, training: {stps: 1}, sampling: {images: 10}, guide: {width: 16}}"
    )
    run = snakemake_files(clone, "wrong.yaml")
    assert run.returncode != 0
    for part in ("training.stps: unknown", "network.attention: 4;", "sampling.images: 10;", "threads: 999, but"):
        assert sum(part in line for line in (run.stdout + run.stderr).splitlines()) == 1, part
    (clone / "twice.yaml").write_text("seeds: [1]\nseeds: [2]\n")
    run = snakemake_files(clone, "twice.yaml")
    assert run.returncode != 0 and "twice.yaml: line 2: the key 'seeds' stands in line 1 already" in run.stderr
    assert not (clone / "results").exists()


def test_files_of_claims_and_tables_are_checked_before_the_first_job(clone: Path) -> None:
    """By `ddpm check` and Snakemake, by file, key and value; nothing is made."""
    files = {"published": "- a", "claims": "a: {column: label_acc}"}
    for of, text in files.items():
        (clone / f"workflow/{of}/mine.yaml").write_text(text)
    check = subprocess.run([sys.executable, "-m", "ddpm", "check"], cwd=clone, capture_output=True, text=True)
    run = snakemake_files(clone, "tests/tiny.yaml")
    for of in files:
        (clone / f"workflow/{of}/mine.yaml").unlink()
    assert check.returncode == 2 and run.returncode != 0
    for text in (check.stderr, run.stderr):
        assert "Traceback" not in text
        assert "workflow/published/mine.yaml: holds list; a published table is a mapping" in text
        assert "workflow/claims/mine.yaml: a.column: 'label_acc'; it must be a measured column: fid," in text
    assert not (clone / "results").exists()


def test_snakemake_refuses_a_default_that_is_nested_deeply(clone: Path) -> None:
    """config.yaml is read by the Snakefile; without a traceback of Snakemake's own."""
    kept = (clone / "config.yaml").read_text()
    (clone / "config.yaml").write_text("seeds: " + "[" * 10000 + "]" * 10000)
    run = snakemake_files(clone, "tests/tiny.yaml")
    (clone / "config.yaml").write_text(kept)
    assert run.returncode != 0 and "nested more than 20 deep" in run.stderr and "Traceback" not in run.stderr


def test_the_cores_of_the_login_node_do_not_matter(clone: Path) -> None:
    """With the Slurm profile the nodes compute: what they have is asked of Slurm."""
    (clone / "wide.yaml").write_text("{threads: 999, training: {processes: 64, batch: 64}}")
    command = [sys.executable, "-m", "snakemake", "-n", "--profile", "slurm", "--configfile"]
    run = subprocess.run([*command, "tests/tiny.yaml", "wide.yaml"], cwd=clone, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr

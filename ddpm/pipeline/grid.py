"""config → cells → jobs: what the grid holds, what each job is told, where its results lie. No torch.

A job is one dictionary with everything that its result depends on, defaults filled in, so that its
canonical text (`canonical`) changes exactly when the result may. The parts of a path are names from the
configuration, never hyperparameters.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from ddpm.pipeline import fingerprints
from ddpm.pipeline.catalogue import AXES, complete, continuous, datasets, incompatibility, known_methods, source_of
from ddpm.pipeline.records import IMPORTS, versions

# Every stage's entry point: where its code's fingerprint starts.
STAGES = {
    "data": ("ddpm.stages.data", "prepare"),
    "classifier": ("ddpm.stages.classifier", "train_classifier"),
    "train": ("ddpm.stages.train", "train"),
    "sample": ("ddpm.stages.sample", "sample"),
    "guide": ("ddpm.stages.guide", "train"),
    "fidelity": ("ddpm.stages.fidelity", "evaluate"),
    "likelihood": ("ddpm.stages.likelihood", "evaluate"),
    "ode_likelihood": ("ddpm.stages.ode_likelihood", "evaluate_ode"),
    "table": ("ddpm.tables", "write"),
    "figures": ("ddpm.figures", "write"),
}

# What says how jobs are run and does not change a result; and what an aggregate does not depend on, or not but
# through the records that it reads.
HOW = ("device", "jobs_per_gpu", "checkpoint_seconds")
UNUSED = {
    "table": ("results", *HOW),
    "figures": ("results", *HOW, "likelihood", "ode_likelihood", "fidelity", "classifier"),
}

# The rows without a network (`ddpm.baselines`): real training images, with classes in proportion and by chance
# (ceilings), uniform noise (floor), and histograms, which images alone have.
HISTOGRAMS = ("histogram", "class-histogram")
BASELINES = ("real", "real-by-chance", "noise", *HISTOGRAMS)


@dataclass(frozen=True)
class Network:
    """One trained network: it serves every cell of its objective, schedule and kind of labels."""

    objective: str
    schedule: str
    labels: str  # "unconditional", or "conditional": trained with label dropout
    seed: int

    @property
    def name(self) -> str:
        return f"{self.objective}/{self.schedule}/{self.labels}/seed{self.seed}"


@dataclass(frozen=True)
class Guide:
    """One classifier of noisy images: it serves every cell of its schedule whose guidance asks for one."""

    schedule: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.schedule}/seed{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid for one seed; `reason` says why a pair that cannot work is not run."""

    objective: str
    schedule: str
    guidance: str
    sampler: str
    seed: int
    reason: str = ""

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The four axis names: what one row of the table stands for."""
        return self.objective, self.schedule, self.guidance, self.sampler

    @property
    def name(self) -> str:
        return "/".join(self.row) + f"/seed{self.seed}"


def canonical(job: dict) -> str:
    """The one text of a job: sorted keys, no spaces."""
    return json.dumps(job, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


class Grid:
    """A checked configuration and what it expands to."""

    def __init__(self, config: dict):
        self.config = config
        self._jobs: dict[tuple[str, str], tuple[dict, str]] = {}

    @property
    def results(self) -> str:
        """The folder of this configuration's results."""
        return self.config["results"]

    @property
    def how(self) -> list:
        """The values of `HOW`."""
        return [self.config[key] for key in HOW]

    # ---- cells ------------------------------------------------------------------------------------

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell of every block and seed, once, in the order of the configuration."""
        found: dict[Cell, None] = {}
        for block in self.config["grid"]:
            for row in product(*(block[axis] for axis in AXES)):
                values = {
                    axis: self.config[section][name]
                    for (axis, (section, _)), name in zip(AXES.items(), row, strict=True)
                }
                reason = incompatibility(values)
                for seed in self.config["seeds"]:
                    found[Cell(*row, seed, reason)] = None
        return list(found)

    @cached_property
    def runs(self) -> dict[str, Cell]:
        """The cells that are run, by name."""
        return {c.name: c for c in self.cells if not c.reason}

    @property
    def baselines(self) -> list[str]:
        """The rows without a network: points of continuous coordinates have no histograms."""
        return [b for b in BASELINES if not (continuous(self.config) and b in HISTOGRAMS)]

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The networks that the cells need, by name."""
        return {n.name: n for n in map(self.network, self.runs.values())}

    def is_guided(self, cell: Cell) -> bool:
        """Whether labels steer the cell: then it samples from no likelihood model."""
        return self.guide(cell) is not None or self.network(cell).labels == "conditional"

    def is_given_classes(self, cell: Cell) -> bool:
        """Whether the cell's classes are those of labels that it is given; otherwise they come by chance."""
        guidance = source_of("guidance", self.config["guidances"][cell.guidance])
        weight = self.axis("guidance", cell.guidance).get("weight")
        return self.is_guided(cell) and weight != guidance.attributes["unguided"]

    @cached_property
    def likelihoods(self) -> list[str]:
        """The networks whose bound is measured: those that cells sample from as they are."""
        return list(dict.fromkeys(self.network(c).name for c in self.runs.values() if not self.is_guided(c)))

    @cached_property
    def ode_likelihoods(self) -> list[str]:
        """The networks whose probability flow is measured too; none where the configuration asks for no images."""
        return self.likelihoods if self.config.get("ode_likelihood", {}).get("images") else []

    @cached_property
    def guides(self) -> dict[str, Guide]:
        """The classifiers of noisy images that the cells need, by name."""
        return {g.name: g for g in map(self.guide, self.runs.values()) if g}

    def guide(self, cell: Cell) -> Guide | None:
        """The classifier that guides a cell, where its guidance asks for one."""
        guidance = source_of("guidance", self.config["guidances"][cell.guidance])
        return Guide(cell.schedule, cell.seed) if guidance.attributes["guide"] else None

    def network(self, cell: Cell) -> Network:
        """The network that a cell samples from: labels where its guidance asks for them."""
        guidance = source_of("guidance", self.config["guidances"][cell.guidance])
        return Network(cell.objective, cell.schedule, guidance.attributes["labels"], cell.seed)

    @property
    def pictures(self) -> list[str]:
        """The figures by name: those of every grid, and the source documents' own of points in the plane."""
        usual = ["samples", "training", "forward", "denoising"]
        return usual + ["scores", "langevin", "trajectories"] * continuous(self.config)

    # ---- jobs -------------------------------------------------------------------------------------

    def axis(self, axis: str, name: str) -> dict:
        """One axis value with all its parameters."""
        value = self.config[AXES[axis][0]][name]
        return complete(source_of(axis, value), value)

    @cached_property
    def _used(self) -> dict:
        """The configuration without the axis values that no block of the grid names."""
        found = dict(self.config)
        for axis, (section, _) in AXES.items():
            named = {name for block in self.config["grid"] for name in block[axis]}
            found[section] = {name: value for name, value in self.config[section].items() if name in named}
        return found

    def data_job(self) -> dict:
        data = self.config["data"]
        return {"data": complete(datasets()[data["name"]], data)}

    def classifier_job(self) -> dict:
        return self.data_job() | {"classifier": self.config["classifier"], "threads": self.config["threads"]}

    def train_job(self, name: str) -> dict:
        network, spec = self.networks[name], self.config["network"]
        training = dict(self.config["training"])
        conditional = network.labels == "conditional"
        dropout = training.pop("label_dropout")
        return self.data_job() | {
            "name": name,
            "objective": self.axis("objective", network.objective),
            "schedule": self.axis("schedule", network.schedule),
            "network": complete(fingerprints.networks()[spec["method"]], spec),
            "training": training | ({"label_dropout": dropout} if conditional else {}),
            "conditional": conditional,
            "seed": network.seed,
            "threads": self.config["threads"],
        }

    def guide_job(self, name: str) -> dict:
        return self.data_job() | {
            "name": name,
            "schedule": self.axis("schedule", self.guides[name].schedule),
            "guide": self.config["guide"],
            "threads": self.config["threads"],
        }

    def model(self, name: str) -> dict:
        """What a network is, apart from its training: whoever uses it runs the code of these methods."""
        return {k: v for k, v in self.job("train", name)[0].items() if k in ("objective", "schedule", "network")}

    def sample_job(self, name: str) -> dict:
        cell = self.runs[name]
        network, guide = self.network(cell).name, self.guide(cell)
        return ({"guide": guide.name} if guide else {}) | {
            "name": name,
            "network": network,
            "model": self.model(network),
            "guidance": self.axis("guidance", cell.guidance),
            "sampler": self.axis("sampler", cell.sampler),
            "sampling": self.config["sampling"],
            "threads": self.config["threads"],
        }

    def fidelity_job(self, name: str) -> dict:
        """`name`: a cell, or one of the baselines."""
        return {
            "name": name,
            "images": self.config["sampling"]["images"],
            "fidelity": self.config["fidelity"],
            "threads": self.config["threads"],
        }

    @cached_property
    def batches(self) -> dict[str, list[str]]:
        """What is measured in one job, because one cell takes less than the start of a job: all cells of a network
        under the network's name, and the baselines."""
        found: dict[str, list[str]] = {"baselines": self.baselines}
        for name, cell in self.runs.items():
            found.setdefault(self.network(cell).name, []).append(name)
        return found

    @cached_property
    def batch_of(self) -> dict[str, str]:
        """Cell or baseline → the batch that it is measured in."""
        return {name: batch for batch, names in self.batches.items() for name in names}

    def batch(self, name: str) -> tuple[dict, str]:
        """One batch of fidelity jobs, `names` instead of each one's `name`, and the fingerprint of their code."""
        names = self.batches[name]
        job, fingerprint = self.job("fidelity", names[0])
        return {"names": names} | {k: v for k, v in job.items() if k != "name"}, fingerprint

    def likelihood_job(self, stage: str, name: str) -> dict:
        """`stage`: likelihood or ode_likelihood; both read the section of their name."""
        return {
            "name": name,
            "model": self.model(name),
            "seed": self.networks[name].seed,
            stage: self.config[stage],
            "threads": self.config["threads"],
        }

    def job(self, stage: str, name: str = "") -> tuple[dict, str]:
        """One job and the fingerprint of its code; the same dictionary at every call."""
        if (stage, name) not in self._jobs:
            job = self._job(stage, name)
            self._jobs[stage, name] = job, fingerprints.fingerprint(roots(stage, job))
        return self._jobs[stage, name]

    def _job(self, stage: str, name: str) -> dict:
        match stage:
            case "data":
                return self.data_job()
            case "classifier":
                return self.classifier_job()
            case "train":
                return self.train_job(name)
            case "sample":
                return self.sample_job(name)
            case "fidelity":
                return self.fidelity_job(name)
            case "guide":
                return self.guide_job(name)
            case "likelihood" | "ode_likelihood":
                return self.likelihood_job(stage, name)
            case "table" | "figures":
                return {"config": {k: v for k, v in self._used.items() if k not in UNUSED[stage]}}
        raise ValueError(f"{stage}: no such stage")

    def parents(self, stage: str, name: str = "") -> dict[str, tuple[str, str]]:
        """What a job reads, by the names that its record uses → the job (stage, name) that makes it."""
        return parents(stage, name, self.job(stage, name)[0])

    def needed(self, stage: str, name: str = "") -> list[tuple[str, str]]:
        """The jobs (stage, name) that lead to one job, itself last."""
        found: dict[tuple[str, str], None] = {}
        for parent in self.parents(stage, name).values():
            found |= dict.fromkeys(self.needed(*parent))
        return [*found, (stage, name)]

    @cached_property
    def jobs(self) -> list[tuple[str, str]]:
        """Every job (stage, name) of the grid but the aggregates, each after what it needs."""
        return [
            ("data", ""),
            ("classifier", ""),
            *(("train", n) for n in self.networks),
            *(("guide", n) for n in self.guides),
            *(("likelihood", n) for n in self.likelihoods),
            *(("ode_likelihood", n) for n in self.ode_likelihoods),
            *(("sample", n) for n in self.runs),
            *(("fidelity", n) for n in [*self.runs, *self.baselines]),
        ]


def parents(stage: str, name: str, job: dict | None = None) -> dict[str, tuple[str, str]]:
    """Who makes what one job reads, by the names that its record uses; a cell's job says what it samples from."""
    found = {} if stage == "data" else {"data": ("data", "")}
    match stage:
        case "sample":
            found["weights"] = ("train", job["network"])
            if "guide" in job:
                found["guide"] = ("guide", job["guide"])
        case "likelihood" | "ode_likelihood":
            found["weights"] = ("train", name)
        case "fidelity":
            if name not in BASELINES:
                found["samples"] = ("sample", name)
            found["extractor"] = ("classifier", "")
    return found


def roots(stage: str, job: dict) -> frozenset[tuple[str, str]]:
    """Where the code of a job starts: its stage's entry point, and the methods that it names."""
    found = {STAGES[stage]}
    for part in (job, job.get("model", {})):
        for axis in ("schedule", "guidance", "sampler"):
            if axis in part:
                found.add((AXES[axis][1], source_of(axis, part[axis]).name))
        if "objective" in part:
            network = part["network"]["method"]
            found.add(("ddpm.objectives", known_methods("objective")[part["objective"]["target"]].name))
            found.add(("ddpm.times", fingerprints.methods("ddpm.times", "Times")[part["objective"]["times"]].name))
            found.add((f"ddpm.networks.{network}", fingerprints.networks()[network].name))
    if stage == "data":
        dataset = datasets()[job["data"]["name"]]
        found.add((dataset.module, dataset.name))
    if stage == "fidelity" and job["name"] in BASELINES:  # all of them, because they are one batch
        found |= {("ddpm.baselines", b.name) for b in fingerprints.methods("ddpm.baselines", "Baseline").values()}
    return frozenset(found)


def environment(stage: str, job: dict) -> dict[str, str]:
    """The installed versions of the packages that a job's numbers depend on: of those that its code names."""
    named = fingerprints.packages(roots(stage, job))
    return {package: v for package, v in versions().items() if IMPORTS.get(package, package) in named}

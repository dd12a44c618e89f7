"""config → cells → jobs: what the grid holds, what each job is told, where its results lie. No torch.

A job is one dictionary with everything that its result depends on, defaults filled in, so that its
canonical text (`canonical`) changes exactly when the result may. The parts of a path are names from the
configuration, never hyperparameters.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

from ddpm import source
from ddpm.errors import UserError
from ddpm.limits import outside
from ddpm.provenance import IMPORTS, versions

AXES = {
    "objective": ("objectives", "ddpm.objectives"),
    "schedule": ("schedules", "ddpm.schedules"),
    "guidance": ("guidances", "ddpm.guidance"),
    "sampler": ("samplers", "ddpm.samplers"),
}

# Every stage's entry point: where its code's fingerprint starts.
STAGES = {
    "data": ("ddpm.data", "prepare"),
    "classifier": ("ddpm.fidelity", "train_classifier"),
    "train": ("ddpm.training", "train"),
    "sample": ("ddpm.sampling", "sample"),
    "guide": ("ddpm.guide", "train"),
    "fidelity": ("ddpm.fidelity", "evaluate"),
    "likelihood": ("ddpm.likelihood", "evaluate"),
    "ode_likelihood": ("ddpm.likelihood", "evaluate_ode"),
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

# The rows that bound the table: real training images (ceiling) and uniform noise (floor).
BASELINES = ("real", "noise")


class ConfigError(UserError):
    """Mistakes in the configuration: one message of one to three lines each."""

    def __init__(self, messages: list[str]):
        self.messages = messages
        super().__init__("\n".join(messages))


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


@cache
def known_methods(axis: str) -> dict[str, source.MethodSource]:
    """The methods of an axis by name; an objective's are its targets."""
    module = AXES[axis][1]
    return source.methods(module, "Target" if axis == "objective" else axis.capitalize())


def datasets() -> dict[str, source.MethodSource]:
    """The datasets by name."""
    return source.methods("ddpm.data", "Dataset")


def source_of(axis: str, value: dict) -> source.MethodSource:
    """The source that declares an axis value's parameters: its method's class, or `Objective`."""
    return source.describe(AXES[axis][1], "Objective") if axis == "objective" else known_methods(axis)[value["method"]]


def _cast(kind: str, value: object) -> object:
    """The value in its declared type, so that 1 and 1.0 are one job; TypeError where it does not fit."""
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind.startswith("tuple[") and isinstance(value, list | tuple):
        return [_cast(kind.removeprefix("tuple[").split(",")[0], v) for v in value]
    plain = {"int": int, "str": str, "bool": bool}.get(kind)
    if plain is not None and isinstance(value, plain) and not (kind == "int" and isinstance(value, bool)):
        return value
    raise TypeError(kind)


def _complete(declared: source.MethodSource, value: dict) -> dict:
    """All parameters of a method: the configured ones, the others at their defaults."""
    named = {k: v for k, v in value.items() if k in ("method", "name")}
    return named | {n: _cast(p.type, value.get(n, p.default)) for n, p in declared.parameters.items()}


class Grid:
    """A checked configuration and what it expands to."""

    def __init__(self, config: dict):
        self.config = config
        if mistakes := list(self._mistakes()):
            raise ConfigError(mistakes)

    @property
    def results(self) -> str:
        """The folder of this configuration's results."""
        return self.config["results"]

    # ---- checks -----------------------------------------------------------------------------------

    def _mistakes(self) -> Iterator[str]:
        """Cross-checks that the JSON schema cannot express."""
        for axis, (section, _) in AXES.items():
            key = "target" if axis == "objective" else "method"
            for name, value in self.config[section].items():
                yield from self._method_mistakes(
                    f"{section}.{name}", key, value, known_methods(axis), lambda v, a=axis: source_of(a, v)
                )
        for section, key, known in (("network", "method", source.networks()), ("data", "name", datasets())):
            yield from self._method_mistakes(
                section, key, self.config[section], known, lambda v, k=key, d=known: d[v[k]]
            )
        for i, block in enumerate(self.config["grid"]):
            undefined = [(a, s, n) for a, (s, _) in AXES.items() for n in block[a] if n not in self.config[s]]
            for axis, section, name in undefined:
                known = ", ".join(self.config[section])
                yield f"grid[{i}].{axis}: {name!r} is not defined under {section}; defined are {known}"
            if not undefined:
                yield from self._length_mistakes(f"grid[{i}]", block)

    def _length_mistakes(self, where: str, block: dict) -> Iterator[str]:
        """Samplers with more steps than the schedule that they are to run on."""
        for schedule, sampler in product(block["schedule"], block["sampler"]):
            try:
                total, wanted = self.axis("schedule", schedule)["steps"], self.axis("sampler", sampler)["steps"]
            except (TypeError, KeyError):
                continue  # reported with the method itself
            if wanted > total:
                yield f"{where}: sampler {sampler!r} takes {wanted} steps, but schedule {schedule!r} has T = {total}"

    @staticmethod
    def _method_mistakes(where: str, key: str, value: dict, known: dict, declared: Callable) -> Iterator[str]:
        """What is wrong with one method and its parameters."""
        if value[key] not in known:
            yield f"{where}.{key}: {value[key]!r} is unknown; known are {', '.join(known)}"
            return
        method = declared(value)
        parameters, limits, choices = method.parameters, *(method.attributes.get(k, {}) for k in ("limits", "choices"))
        for name, given in value.items():
            if name not in parameters:
                if name != key:
                    yield f"{where}.{name}: unknown key; known are {', '.join(parameters) or 'none'}"
                continue
            kind = parameters[name].type
            try:
                if mistake := outside(name, _cast(kind, given), limits.get(name), choices.get(name)):
                    yield f"{where}.{mistake}"
            except TypeError:
                hint = " (YAML reads 2e-4 as text: write 2.0e-4)" if kind == "float" and isinstance(given, str) else ""
                yield f"{where}.{name}: {given!r} is of type {type(given).__name__}; it must be {kind}{hint}"

    def _reason(self, values: dict[str, dict]) -> str:
        """Why these axis values cannot work together, as the methods declare it; empty where they can."""
        declared = {axis: source_of(axis, value) for axis, value in values.items()}
        full = {axis: _complete(declared[axis], value) | declared[axis].attributes for axis, value in values.items()}
        for axis in values:
            for other, parameter, refused, reason in declared[axis].attributes.get("incompatible") or ():
                if full[other].get(parameter) == refused:
                    return reason
        return ""

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
                reason = self._reason(values)
                for seed in self.config["seeds"]:
                    found[Cell(*row, seed, reason)] = None
        return list(found)

    @cached_property
    def runs(self) -> dict[str, Cell]:
        """The cells that are run, by name."""
        return {c.name: c for c in self.cells if not c.reason}

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The networks that the cells need, by name."""
        return {n.name: n for n in map(self.network, self.runs.values())}

    @cached_property
    def likelihoods(self) -> list[str]:
        """The networks whose bound is measured: a guided model is no likelihood model, so the unconditional ones."""
        return [n.name for n in self.networks.values() if n.labels == "unconditional"]

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

    # ---- jobs -------------------------------------------------------------------------------------

    def axis(self, axis: str, name: str) -> dict:
        """One axis value with all its parameters."""
        value = self.config[AXES[axis][0]][name]
        return _complete(source_of(axis, value), value)

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
        return {"data": _complete(datasets()[data["name"]], data)}

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
            "network": _complete(source.networks()[spec["method"]], spec),
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
        return {k: v for k, v in self.train_job(name).items() if k in ("objective", "schedule", "network")}

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
        """`name`: a cell, or one of the two baselines `real` and `noise`."""
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
        found: dict[str, list[str]] = {"baselines": list(BASELINES)}
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
            stage: self.config[stage],
            "threads": self.config["threads"],
        }

    def job(self, stage: str, name: str = "") -> tuple[dict, str]:
        """One job and the fingerprint of its code."""
        match stage:
            case "data":
                job = self.data_job()
            case "classifier":
                job = self.classifier_job()
            case "train":
                job = self.train_job(name)
            case "sample":
                job = self.sample_job(name)
            case "fidelity":
                job = self.fidelity_job(name)
            case "guide":
                job = self.guide_job(name)
            case "likelihood" | "ode_likelihood":
                job = self.likelihood_job(stage, name)
            case "table" | "figures":
                job = {"config": {k: v for k, v in self._used.items() if k not in UNUSED[stage]}}
        return job, source.fingerprint(roots(stage, job))

    def parents(self, stage: str, name: str = "") -> dict[str, tuple[str, str]]:
        """What a job reads, by the names that its record uses → the job (stage, name) that makes it."""
        found = {} if stage == "data" else {"data": ("data", "")}
        match stage:
            case "sample":
                found["weights"] = ("train", self.network(self.runs[name]).name)
                if guide := self.guide(self.runs[name]):
                    found["guide"] = ("guide", guide.name)
            case "likelihood" | "ode_likelihood":
                found["weights"] = ("train", name)
            case "fidelity":
                if name not in BASELINES:
                    found["samples"] = ("sample", name)
                found["extractor"] = ("classifier", "")
        return found

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
            *(("fidelity", n) for n in [*self.runs, *BASELINES]),
        ]


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
            found.add(("ddpm.times", source.methods("ddpm.times", "Times")[part["objective"]["times"]].name))
            found.add((f"ddpm.networks.{network}", source.networks()[network].name))
    if stage == "data":
        found.add(("ddpm.data", datasets()[job["data"]["name"]].name))
    return frozenset(found)


def environment(stage: str, job: dict) -> dict[str, str]:
    """The installed versions of the packages that a job's numbers depend on: of those that its code names."""
    named = source.packages(roots(stage, job))
    return {package: v for package, v in versions().items() if IMPORTS.get(package, package) in named}

"""config → cells → jobs: what the grid holds, what each job is told, where its results lie. No torch.

A job is one dictionary with everything that its result depends on, defaults filled in, so that its
canonical text (`canonical`) changes exactly when the result may. The parts of a path are names from the
configuration, never hyperparameters.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from ddpm.pipeline import averages, fingerprints, measures
from ddpm.pipeline.cascades import upsamples
from ddpm.pipeline.checks import continuous, given, incompatibility
from ddpm.pipeline.registry import AXES, complete, known, source_of
from ddpm.pipeline.spaces import is_latent
from ddpm.pipeline.stage import BASELINES, EXECUTION, Job
from ddpm.pipeline.stages import AGGREGATES, STAGES


@dataclass(frozen=True)
class Network:
    """One trained network: it serves every cell of its objective, schedule, kind of labels and architecture.

    parts: the names in `name`; that of the architecture only where it is not the default of the configuration.
    factor: how many pixels of an image are one of those that it sees, along each side.
    """

    objective: str
    schedule: str
    labels: str  # "unconditional", or "conditional": trained with label dropout
    architecture: str  # one of `networks`
    seed: int
    parts: tuple[str, ...]
    factor: int = 1

    @property
    def name(self) -> str:
        return "/".join(self.parts) + f"/seed{self.seed}"


@dataclass(frozen=True)
class Guide:
    """One classifier of noisy images: it serves every cell of its schedule and space whose guidance asks for one.

    latent: whether it sees latents instead of images.
    """

    schedule: str
    seed: int
    latent: bool

    @property
    def name(self) -> str:
        return f"{self.schedule}/{'latent/' * self.latent}seed{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid for one seed; `reason` says why a pair that cannot work is not run.

    sampling: which of the sampling seeds draws its noise, counted from 0, which its name does not tell.
    parts: the names in `name`; that of the network only where it is not the default of the configuration.
    """

    objective: str
    schedule: str
    guidance: str
    sampler: str
    network: str
    seed: int
    parts: tuple[str, ...]
    reason: str = ""
    sampling: int = 0

    @property
    def row(self) -> tuple[str, ...]:
        """The names on the axes: what one row of the table stands for."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def name(self) -> str:
        return "/".join(self.parts) + f"/seed{self.seed}" + (f"-sampling{self.sampling}" if self.sampling else "")


class Grid:
    """A checked configuration and what it expands to."""

    def __init__(self, config: dict):
        self.config = config
        self._jobs: dict[Job, tuple[dict, str]] = {}

    @property
    def results(self) -> str:
        """The folder of this configuration's results."""
        return self.config["results"]

    @property
    def execution(self) -> tuple[str, int, float]:
        """The values of `EXECUTION`."""
        device, jobs_per_gpu, checkpoint_seconds = (self.config[key] for key in EXECUTION)
        return device, jobs_per_gpu, checkpoint_seconds

    # ---- cells ------------------------------------------------------------------------------------

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell of every block and seed, once, in the order of the configuration; a block may have `further_seeds`
        beside `seeds`."""
        found: dict[Cell, None] = {}
        for block in self.config["grid"]:
            for row in product(*(block[axis] for axis in AXES)):
                names = dict(zip(AXES, row, strict=True))
                values = {axis: self.config[section][names[axis]] for axis, section in AXES.items()}
                reason = incompatibility(values)
                seeds = (*self.config["seeds"], *block.get("further_seeds", ()))
                for seed, sampling in product(seeds, range(self.sampling_seeds)):
                    found[Cell(**names, seed=seed, parts=self._parts(*row), reason=reason, sampling=sampling)] = None
        return list(found)

    @property
    def sampling_seeds(self) -> int:
        """How many sets of samples every network draws for a cell."""
        return self.config["sampling"].get("seeds", 1)

    def _parts(self, *names: str) -> tuple[str, ...]:
        """The names without the last, the network's, where that is the configuration's default."""
        return names[:-1] if names[-1] == self.config["network"] else names

    @cached_property
    def runs(self) -> dict[str, Cell]:
        """The cells that are run, by name."""
        return {c.name: c for c in self.cells if not c.reason}

    @cached_property
    def rows(self) -> dict[tuple[str, ...], list[Cell]]:
        """The cells of every row of the table by the row's names, those that are not run included."""
        found: dict[tuple[str, ...], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.row, []).append(cell)
        return found

    @cached_property
    def baselines(self) -> list[str]:
        """The rows without a network that these data can have."""
        there = measures.possible(measures.baselines(), given(self.config) | self.autoencoder(self.latent).keys())
        return [baseline for baseline in BASELINES if baseline in there]

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that the configuration asks for, of those that these data can have."""
        return measures.chosen(self.config.get("fidelity", {}), given(self.config))

    @cached_property
    def needs(self) -> list[str]:
        """What has to be made for the metrics and the extractor, `classifier` or nothing; figures do not read it."""
        fidelity = self.config.get("fidelity")
        return measures.needs(fidelity, given(self.config)) if fidelity else []

    @cached_property
    def own_space(self) -> dict:
        """The data's space, where a file of the user's own declares it: its method and `modules`; else empty."""
        data = self.config["data"]
        method = source_of("dataset", data).attributes["space"]["method"]
        modules = known("space", tuple(data.get("modules", ())))[method].modules
        return {"method": method, "modules": modules} if modules else {}

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The networks that the cells need, by name."""
        own = map(self.network, self.runs.values())
        others = (other for cell in self.runs.values() for other in self.others(cell).values())
        return {n.name: n for n in (*own, *others)}

    def in_latents(self, architecture: str) -> bool:
        """Whether a network works in the latents of the autoencoder."""
        return is_latent(self.config["networks"][architecture])

    @property
    def latent(self) -> bool:
        """Whether any network does."""
        return any(self.in_latents(network.architecture) for network in self.networks.values())

    def autoencoder(self, latent: bool) -> dict:
        """What the jobs of networks that work in latents are told of the autoencoder; nothing of others."""
        return {"autoencoder": self.config["autoencoder"]} if latent else {}

    def is_bounded(self, cell: Cell) -> bool:
        """Whether the cell's network has bits/dim of the data."""
        return not self.is_guided(cell) and not self.unbounded(cell)

    def unbounded(self, cell: Cell) -> str:
        """Why the cell's network has none, guided or not; empty where it may have."""
        if self.in_latents(cell.network):
            return "a bound in latents is none of the images'"
        return "a cascade's bound is of images given smaller ones" if self.base_network(cell) else ""

    def is_guided(self, cell: Cell) -> bool:
        """Whether labels steer the cell: then it samples from no likelihood model."""
        return self.guide(cell) is not None or self.network(cell).labels == "conditional"

    def is_given_classes(self, cell: Cell) -> bool:
        """Whether the cell's classes are those of labels that it is given; otherwise they come by chance."""
        guidance = source_of("guidance", self.config["guidances"][cell.guidance])
        weight, unguided = self.axis("guidance", cell.guidance).get("weight"), guidance.attributes["unguided"]
        return self.is_guided(cell) and (unguided is None or weight != unguided)

    @cached_property
    def guides(self) -> dict[str, Guide]:
        """The classifiers of noisy images that the cells need, by name."""
        return {g.name: g for g in map(self.guide, self.runs.values()) if g}

    def guide(self, cell: Cell) -> Guide | None:
        """The classifier that guides a cell, where its guidance asks for one."""
        guidance = source_of("guidance", self.config["guidances"][cell.guidance])
        return Guide(cell.schedule, cell.seed, self.in_latents(cell.network)) if guidance.attributes["guide"] else None

    def network(self, cell: Cell, architecture: str = "") -> Network:
        """The network that a cell samples from, or its like of another architecture: labels where its guidance asks for
        them."""
        guidance = source_of("guidance", self.config["guidances"][cell.guidance])
        names = cell.objective, cell.schedule, guidance.attributes["labels"], architecture or cell.network
        return Network(*names, cell.seed, self._parts(*names))

    def guide_network(self, cell: Cell) -> Network | None:
        """The network that guides a cell, where its guidance names one."""
        name = self.config["guidances"][cell.guidance].get("guide_network")
        return self.network(cell, name) if name else None

    def trained_as(self, network: Network) -> Network:
        """The network whose training the weights are of: of an `ema`, that of the usual average."""
        of = self.config["networks"][network.architecture].get("of", network.architecture)
        return self._like(network, of, network.factor)

    def _like(self, network: Network, architecture: str, factor: int) -> Network:
        """A network of another architecture that sees images that are smaller by a factor. Its name says this as well:
        the same architecture may see full images elsewhere."""
        last = f"{architecture}@{factor}" if factor > 1 else architecture
        parts = self._parts(network.objective, network.schedule, network.labels, last)
        return replace(network, architecture=architecture, parts=parts, factor=factor)

    @cached_property
    def snapshots(self) -> dict[str, str]:
        """The networks whose training keeps snapshots, by name → the first network that is an average of them."""
        found: dict[str, str] = {}
        for name, network in self.networks.items():
            if averages.kept(self.job("train", name)[0]):
                found.setdefault(self.trained_as(network).name, name)
        return found

    def others(self, cell: Cell) -> dict[str, Network]:
        """The other networks that a cell is sampled with, by their roles: `guide`, and `base` of a cascade."""
        found = {"guide": self.guide_network(cell), "base": self.base_network(cell)}
        return {role: network for role, network in found.items() if network}

    def base_network(self, cell: Cell) -> Network | None:
        """The network whose small images that of a cell enlarges, where it does."""
        if not upsamples(self.config["networks"][cell.network]):
            return None
        value = self.axis("network", cell.network)
        return self._like(self.network(cell), value["base"], value["factor"])

    @property
    def pictures(self) -> list[str]:
        """The figures by name: those of every grid, and the source documents' own of points in the plane."""
        some = {"steps": self.lengths, "guidance": self.weights, "bound": bool(self.names["likelihood"])}
        some["seconds"] = self.architectures > 1
        usual = ["comparison", "samples", "denoising", *(name for name, there in some.items() if there)]
        own = ["scores", "langevin", "trajectories"] if continuous(self.config) else ["neighbours"]
        cascade = ["cascade"] * any(map(self.base_network, self.runs.values()))
        return [*usual, "schedules", "forward", "training", *own, *cascade]

    @property
    def architectures(self) -> int:
        """How many architectures are trained for cells; the others are averages of their weights."""
        return len({self.trained_as(self.network(cell)).architecture for cell in self.runs.values()})

    @property
    def lengths(self) -> bool:
        """Whether a network is sampled by samplers of several numbers of steps."""
        found: dict[tuple[str, str], set[int | None]] = {}
        for cell in self.runs.values():
            steps = self.axis("sampler", cell.sampler).get("steps")
            found.setdefault((self.network(cell).name, cell.guidance), set()).add(steps)
        return any(len(steps) > 1 for steps in found.values())

    @property
    def weights(self) -> bool:
        """Whether a kind of guidance has several weights."""
        found = {cell.guidance: self.axis("guidance", cell.guidance) for cell in self.runs.values()}
        methods = [value["method"] for value in found.values() if "weight" in value]
        return len(methods) > len(set(methods))

    # ---- jobs -------------------------------------------------------------------------------------

    def axis(self, axis: str, name: str) -> dict:
        """One axis value with all its parameters."""
        value = self.config[AXES[axis]][name]
        return complete(source_of(axis, value), value)

    def trained(self, name: str) -> dict:
        """A network as its training is told of it: nothing of what only sampling makes use of."""
        value = self.axis("network", name)
        left_out = ("base", "augmentation") if upsamples(value) else ()
        return {k: v for k, v in value.items() if k not in left_out}

    @cached_property
    def used(self) -> dict:
        """The configuration without the axis values that no block of the grid names, nor a guidance of one, and without
        the autoencoder where no network works in its latents."""
        found = {k: v for k, v in self.config.items() if k != "autoencoder" or self.latent}
        named = {axis: {name for block in self.config["grid"] for name in block[axis]} for axis in AXES}
        named["network"] |= {network.architecture for network in self.networks.values()}
        for axis, section in AXES.items():
            found[section] = {name: value for name, value in self.config[section].items() if name in named[axis]}
        return found

    def model(self, name: str) -> dict:
        """What a network is, apart from its training: whoever uses it runs the code of these methods."""
        parts = ("objective", "schedule", "network", "autoencoder")
        return {k: v for k, v in self.job("train", name)[0].items() if k in parts}

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

    def job(self, stage: str, name: str = "") -> tuple[dict, str]:
        """One job and the fingerprint of its code; the same dictionary at every call."""
        if (stage, name) not in self._jobs:
            job = STAGES[stage].job(self, name) | ({"space": self.own_space} if self.own_space else {})
            self._jobs[stage, name] = job, fingerprints.fingerprint(STAGES[stage].roots(job))
        return self._jobs[stage, name]

    def parents(self, stage: str, name: str = "") -> dict[str, Job]:
        """What a job reads, by the names that its record uses → the job that makes it."""
        return STAGES[stage].parents(name, self.job(stage, name)[0])

    def needed(self, stage: str, name: str = "") -> list[Job]:
        """The jobs (stage, name) that lead to one job, itself last."""
        found: dict[Job, None] = {}
        for parent in self.parents(stage, name).values():
            found |= dict.fromkeys(self.needed(*parent))
        return [*found, (stage, name)]

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """Stage → the names of its jobs; the aggregates left out."""
        return {name: stage.names(self) for name, stage in STAGES.items() if name not in AGGREGATES}

    @cached_property
    def jobs(self) -> list[Job]:
        """Every job of the grid but the aggregates, each after what it needs."""
        return [(stage, name) for stage, names in self.names.items() for name in names]

    @cached_property
    def every(self) -> list[Job]:
        """Every job, the aggregates last."""
        return [*self.jobs, *((aggregate, "") for aggregate in AGGREGATES)]

    def own(self, cell: Cell) -> dict[str, str]:
        """The jobs of a cell itself and of its network: stage → name."""
        served = {stage: STAGES[stage].serving(self, cell) for stage in self.names}
        return {stage: name for stage, name in served.items() if name is not None}

    def row(self, cell: Cell) -> list[Job]:
        """The jobs that a cell's row of the table comes from, each after what it needs; what compares rows is none."""
        own = [job for job in self.own(cell).items() if job[0] != "paired"]
        return list(dict.fromkeys(needed for job in own for needed in self.needed(*job)))

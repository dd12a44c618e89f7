# What all rules share: the checked grid, the paths, and the command that runs a job.
import gc
import os
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.settings.enums import Quietness

# A clone's own package, wherever another may be installed. (A folder of `ddpm init` has none.)
sys.path.insert(0, str(workflow.basedir))

from ddpm.errors import UserError
from ddpm.pipeline import config as configuration
from ddpm.pipeline import copies, machine, project
from ddpm.pipeline.devices import gpus
from ddpm.pipeline.history import clear
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.preflight import check, requests
from ddpm.pipeline.progress import Progress, Teller
from ddpm.pipeline.records import canonical, write_json
from ddpm.pipeline.results import Results
from ddpm.pipeline.stages import AGGREGATES, STAGES
from ddpm.pipeline.status import plan_lines
from ddpm.tables import declared

# Planning makes objects that all stay: looking among them for garbage would take a quarter of its time.
gc.disable()

# Snakemake's own reading keeps silent about a key that stands twice, and fails on what is nested too deeply.
try:
    if workflow.is_main_process:
        configuration.read("config.yaml", *workflow.overwrite_configfiles)
except UserError as e:
    raise WorkflowError(f"the configuration is wrong:\n{e}") from None


configfile: "config.yaml"


# Snakemake counts jobs, not cores, where they run on other machines than this one.
CLUSTER = workflow.resource_settings.nodes is not None

try:
    CHECKS = [*machine.checks(CLUSTER), declared.mistakes] if workflow.is_main_process else []
    GRID = configuration.check(config, *CHECKS)
except UserError as e:
    raise WorkflowError(f"the configuration is wrong:\n{e}\n(`ddpm check` lists what it expands to)") from None

PATHS = Layout(Path(config["results"]))

if workflow.deployment_settings.deployment_method and project.installed():
    raise WorkflowError("--sdm: the environment of envs/ddpm.yaml holds no ddpm; use it in a clone, or leave it out")

# Progress bars go to the log files: one line every ten seconds is enough there.
os.environ.setdefault("TQDM_MININTERVAL", "10")
# `python` in a job is the one that runs Snakemake; with --sdm conda the environment's own comes before it.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.getenv("PATH", "")]))

# A job that may compute on a GPU asks for one and leases it when it starts; here as many run as there are places.
GPU = int(config["device"] != "cpu")
if workflow.is_main_process and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", len(gpus()) * config["jobs_per_gpu"] if GPU else 0)

# The results, and the files of the jobs that would run, once `plan` knows them; what runs beside a run's jobs.
RESULTS = TODO = TELLER = COPIES = None


async def leave_outputs(job, *_):
    """Nothing, where Snakemake would delete a job's outputs and log: before it starts, and where it has failed.

    Jobs replace results by renaming, keep what they replace, leave what is valid, also what another copy has just
    finished, and append to their log.
    """


Job.remove_existing_output = Job.cleanup = leave_outputs


wildcard_constraints:
    guide=r"[^/]+/(?:latent/)?seed\d+",
    network=r"[^/]+/[^/]+/[^/]+(?:/[^/]+)?/seed\d+",
    cell=r"[^/]+/[^/]+/[^/]+/[^/]+(?:/[^/]+)?/seed\d+(?:-sampling\d+)?",
    batch=r"baselines|[^/]+/[^/]+/[^/]+(?:/[^/]+)?/seed\d+",


def plan():
    """Tell Snakemake, once, what to run, when it asks for the inputs of the first job.

    Records decide which results are valid (ddpm/pipeline/results.py). Snakemake's own triggers compare times and a memory that
    may be lost, so they are off, and what would run is forced.
    """
    global RESULTS, TODO
    if TODO is not None:
        return
    TODO = set()
    if not workflow.is_main_process:  # on a cluster's node: the one job that it is for
        return
    results = RESULTS = Results(GRID, PATHS, environment=not workflow.deployment_settings.deployment_method)
    TODO.update(str(done(*job)) for job in results.todo)
    workflow.dag.forcefiles.update(TODO, map(str, results.unmarked))
    workflow.dag_settings.rerun_triggers = frozenset()
    workflow.dag.ignore_incomplete = True
    for line in plan_lines(results):
        logger.info(line)
    # Snakemake takes a link to nothing for a file, and fails where it asks for its time.
    files = [path for job in results.todo for path in (done(*job), PATHS.record(*job), *PATHS.outputs(*job))]
    files += [*results.unmarked, *PATHS.pictures(GRID.pictures, GRID.runs)]
    clear(PATHS, *dict.fromkeys(path for path in files if path.is_symlink() and not path.exists()))


@cache
def done(stage, name):
    """The file that tells Snakemake that a job is done."""
    return PATHS.measured(GRID.batch_of[name]) if stage == "fidelity" else PATHS.record(stage, name)


def inputs_of(stage, wildcard=None):
    """What a job waits for. Times decide nothing: what will not be made anew counts as ancient."""

    def inputs(wildcards):
        plan()
        name = wildcards.get(wildcard, "")
        if stage in AGGREGATES:
            every = [*GRID.jobs, *((name, "") for name in AGGREGATES)]
            jobs = [job for job in every if job[0] in AGGREGATES[stage].reads]
        else:
            names = GRID.batches[name] if stage == "fidelity" else [name]
            jobs = [parent for name in names for parent in GRID.parents(stage, name).values()]
        files = dict.fromkeys(str(done(*job)) for job in jobs)
        return [f if f in TODO else ancient(f) for f in files]

    return inputs


def given(job, stage, name=""):
    """A job as the command is given it: its canonical text, or the file that holds what no command line could."""
    text = canonical(job)
    if len(text) < 60000:  # a command line's argument ends at 128 KiB, quotes included
        return text
    path = PATHS.work(stage, name) / "job.json"
    write_json(path, job)
    return f"@{path}"


def job_of(stage, wildcard=None):
    """The job that a rule's wildcard names: one parameter, so that nothing is missed."""

    def job(wildcards):
        name = wildcards.get(wildcard, "")
        return given(GRID.job(stage, name)[0], stage, name)

    return job


def code_of(stage, wildcard=None):
    """The fingerprint of the code that this job runs."""
    return lambda wildcards: GRID.job(stage, wildcards.get(wildcard, ""))[1]


def name_of(stage):
    """The wildcard that stands for the names of a stage's jobs; empty where there is one job."""
    return f"{{{stage.wildcard}}}" if stage.wildcard else ""


def device_of(stage):
    """What a stage's jobs compute on: on a cluster's node that a profile has given no GPU for it, the CPU."""
    if not stage.gpu:
        return "cpu"
    return lambda wildcards, resources: config["device"] if workflow.is_main_process or resources.gpu else "cpu"


def command(options=""):
    """The shell command of a rule's jobs; copies of one append to its log, and on failure its end is shown."""
    options += f" --jobs-per-gpu {config['jobs_per_gpu']} --checkpoint-seconds {config['checkpoint_seconds']}"
    return (
        '{{ echo "$(date -u +%FT%TZ) {params.stage} {wildcards} on $(hostname)'
        '${{SLURM_JOB_ID:+, Slurm job $SLURM_JOB_ID}}";'
        f" python -m ddpm job {{params.stage}} --job {{params.job:q}} --code {{params.code}} --results {PATHS.root}"
        f" --device {{params.device}} {options}; }}}} >> {{log}} 2>&1 || {{{{ tail -n ${{{{DDPM_TAIL:-4}}}} {{log}} >&2; exit 1; }}}}"
    )


def clear_way():
    """Where jobs will write, set aside what Snakemake would stumble over: a folder in a file's place, or the reverse."""
    jobs = [job for job in workflow.dag.needrun_jobs() if job.rule.name != "all"]
    clear(PATHS, *dict.fromkeys(Path(path) for job in jobs for path in (*job.output, *job.log)))


def tell():
    """Have it said how far the grid is: with `--quiet progress`, in place of what Snakemake would say."""
    global TELLER
    if not workflow.is_main_process:
        return
    jobs = [(job.rule.name, *job.wildcards) for job in workflow.dag.needrun_jobs() if job.rule.name != "all"]
    names = {(stage, *name) if name else (stage, "") for stage, *name in jobs if stage != "fidelity"}
    names |= {(stage, cell) for stage, *batch in jobs if stage == "fidelity" for cell in GRID.batches[batch[0]]}
    places = workflow.resource_settings.nodes or max(1, workflow.resource_settings.cores // config["threads"])
    alone = not {Quietness.PROGRESS, Quietness.ALL}.isdisjoint(workflow.output_settings.quiet or ())
    if alone:  # what a failed job wrote is shown from its log
        os.environ.update(DDPM_TAIL="0")
    TELLER = Teller(Progress(RESULTS, names, places), logger, alone)


def load():
    """Have jobs start as copies of one process, where they are many, run here, and on one thread of a CPU each."""
    global COPIES
    here = workflow.executor_plugin.name == "local" and not workflow.deployment_settings.deployment_method
    on_cpu = config["threads"] == 1 and not (GPU and gpus())
    if here and on_cpu and sys.platform == "linux" and len(list(workflow.dag.needrun_jobs())) > 4:
        COPIES = copies.Server()


def over():
    """The run has ended."""
    if COPIES:
        COPIES.close()
    if TELLER:
        TELLER.stop()


def preflight():
    """Say what the machine or the cluster lacks before anything runs."""
    if any(job.rule.name == "fidelity" for job in workflow.dag.needrun_jobs()):
        if not workflow.deployment_settings.deployment_method:  # else torch need not be here
            try:
                machine.load_extractor(config)
            except UserError as e:
                raise WorkflowError(str(e)) from None
    if workflow.executor_plugin.name == "slurm":
        jobs = {workflow.dag.get_job_group(job) or job for job in workflow.dag.needrun_jobs()}
        try:
            root = PATHS.root.resolve()
            results = next(folder for folder in (root, *root.parents) if folder.is_dir())
            places = [Path.cwd(), results, Path(sys.executable)]
            settings = workflow.executor_settings
            check(requests(jobs, settings.qos), places, settings.status_command)
        except UserError as e:
            raise WorkflowError(f"this cannot run on this cluster as slurm/config.yaml asks:\n{e}") from None

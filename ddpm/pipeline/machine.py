"""What a machine lacks for a configuration's jobs, said before the first of them. No torch."""

import hashlib
import os
import pickletools
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from ddpm.errors import UserError
from ddpm.pipeline import folders, imports
from ddpm.pipeline.checks import dataset_of, networks_of, of_counts
from ddpm.pipeline.devices import gpus
from ddpm.pipeline.registry import complete, files_of, source_of
from ddpm.pipeline.source import modules_in

# What an extractor's state dict holds among others, whose it is, and the file of it: for Inception the one that
# torch-fidelity and pytorch-fid use.
WEIGHTS = {
    "inception": (
        {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight"},
        "Inception's state dict, pt_inception-2015-12-05-6726825d.pth",
    ),
    "dinov2": ({"cls_token", "blocks.23.mlp.fc2.weight"}, "DINOv2's ViT-L/14, dinov2_vitl14_pretrain.pth"),
}

# What imports files of methods and says, in one line each, which of them fail.
IMPORT = """
import sys
from ddpm.errors import UserError
from ddpm.extensions import load

said = sys.stdout
sys.stdout = sys.stderr
for file in sys.argv[1:]:
    try:
        load(file)
    except UserError as e:
        print(e, file=said)
"""


def checks(cluster: bool) -> list[Callable[[dict], Iterator[str]]]:
    """What to check a configuration with before its jobs run: here, or on a cluster, whose nodes this machine is none
    of (ddpm/pipeline/preflight.py asks Slurm about them)."""
    return [_extractor, _folder, _images, _networks, _imports] + [_devices] * (not cluster)


def load_extractor(config: dict) -> None:
    """UserError where Inception or DINOv2 cannot be loaded, or downloaded; loads torch, so only for who is about to
    measure."""
    if config["fidelity"]["extractor"] == "inception":
        from ddpm.metrics.extractors import inception

        inception(config["fidelity"]["weights"])
    elif config["fidelity"]["extractor"] == "dinov2":
        from ddpm.metrics.extractors import dinov2

        dinov2(config["fidelity"]["weights"])


def _extractor(config: dict) -> Iterator[str]:
    """Weights that cannot be loaded."""
    extractor, weights = config["fidelity"]["extractor"], config["fidelity"]["weights"]
    if extractor in WEIGHTS and weights:
        layers, called = WEIGHTS[extractor]
        if wrong := _weights(Path(weights), layers):
            yield f"fidelity.weights: {weights!r} {wrong}: it must be {called}"


def _folder(config: dict) -> Iterator[str]:
    """Results that would lie where a file does."""
    folder = Path(config["results"])
    if file := next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None):
        yield f"results: {config['results']!r}, but {file} is a file; it must be a folder"


def _images(config: dict) -> Iterator[str]:
    """A folder of images that is not there, or of which one sees without reading them that they are too few."""
    declared = source_of("dataset", config["data"])
    if "images" not in declared.attributes["reads"]:
        return
    data = complete(declared, config["data"])
    prepared = Path(config["results"]) / "data" / "record.json"
    if prepared.exists() and not folders.located(data["path"]).is_dir():
        return  # all later jobs read what the data's job has made of them
    if wrong := folders.mistakes(data["path"], data["labels"]):
        yield from wrong
        return
    train, test = folders.sizes(data["path"], data["labels"], data["test_share"])
    for check in of_counts(config, {"train": train, "test": test}):
        yield from check


def _networks(config: dict) -> Iterator[str]:
    """Networks that were trained elsewhere and cannot be read, or are of images of another shape."""
    shape = dataset_of(config)["shape"]
    for where, value in networks_of(config):
        if source_of("network", value).attributes["imported"]:
            try:
                wrong = imports.misfit(value["path"], imports.architecture(value["path"]), shape) if shape else ""
            except UserError as e:
                wrong = str(e)
            if wrong:
                yield f"{where}.{wrong}"


def _imports(config: dict) -> Iterator[str]:
    """Files of methods that cannot be imported, in a process of its own: they import torch."""
    files = [module for file in files_of(config) for module in modules_in(file)]
    if not files or not find_spec("torch"):  # with --sdm conda torch need not be here
        return
    run = subprocess.run([sys.executable, "-c", IMPORT, *files], capture_output=True, text=True)
    lines = run.stdout.splitlines() if run.returncode == 0 else [f"their import ends Python: status {run.returncode}"]
    yield from (f"methods: {line}" for line in lines)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices(config: dict) -> Iterator[str]:
    """More processes or threads than this machine has something to run them on."""
    processes, device, cores = config["training"]["processes"], config["device"], _cores()
    for key, wanted in (("threads", config["threads"]), ("training.processes", processes)):
        if wanted > cores:
            yield f"{key}: {wanted}, but this machine has {cores} cores; it must be at most {cores} here"
    if device == "cpu" or (device == "auto" and processes == 1):
        return
    found = len(gpus())
    if 0 < found < processes <= cores:
        yield f"training.processes: {processes}, but this machine has {found} GPUs; it must be at most {found} here"
    # AMD's are not nvidia-smi's to list.
    if device == "cuda" and not found and not Path("/dev/kfd").exists():
        yield "device: cuda, but this machine has no GPU (driver, CUDA_VISIBLE_DEVICES?); cpu or auto would run"


def _weights(path: Path, layers: set[str]) -> str:
    """Why a file cannot be weights with these layers, as far as it shows without loading them; empty where it may be.

    A name that ends in the first digits of a SHA-256, as torch.hub's do, must tell the truth.
    """
    if path.is_dir():
        return "is a folder"
    try:
        if layers - _names(path):
            return "holds other tensors"
        if named := re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name):
            with path.open("rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
            if not found.startswith(named[1]):
                return f"is truncated or corrupt (its SHA-256 begins with {found[:8]})"
    except FileNotFoundError:
        return "does not exist"
    except OSError as e:
        return f"cannot be read ({e.strerror})"
    except (ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return "is not a valid file of torch.save"
    return ""


def _names(path: Path) -> set[str]:
    """Every text in the pickle of a file of torch.save, read without running it: names of tensors among others."""
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        count = 4  # before torch 1.6: a magic number, a version, the system, and then the object
        if zipfile.is_zipfile(file):
            archive = stack.enter_context(zipfile.ZipFile(file))
            member = next(name for name in [*archive.namelist(), ""] if name.endswith("data.pkl") or not name)
            file, count = stack.enter_context(archive.open(member)), 1
        else:
            file.seek(0)
        return {arg for _ in range(count) for _, arg, _ in pickletools.genops(file) if isinstance(arg, str)}

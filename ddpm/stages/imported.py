"""The `train` stage of a network that was trained elsewhere: it is read, checked and stored as ours are."""

from ddpm import networks
from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.networks.diffusers_unet import DiffusersUNet
from ddpm.objectives import Objective
from ddpm.pipeline.records import read_tensors
from ddpm.pipeline.run import Outcome, Run


def read(run: Run) -> Outcome:
    """The weights, and a training curve of no steps; `imported` says in the record whose they are."""
    dataset = data.read(run.inputs["data"], run.inputs.get("autoencoder"), run.device)
    job, source = run.job, run.inputs["network"]
    heads = Objective.make(job["objective"]).variance.heads
    network = networks.build(job["network"], dataset.shape, heads, 0)
    assert isinstance(network, DiffusersUNet)
    wanted, (tensors, _) = network.unet.state_dict(), read_tensors(source)
    if other := sorted(wanted.keys() ^ tensors.keys()) or [k for k in wanted if wanted[k].shape != tensors[k].shape]:
        raise UserError(f"{source}: not the weights of its config.json: {len(other)} tensors differ, {other[0]} first")
    network.unet.load_state_dict(tensors)
    # The architecture is read again wherever the weights are: where it has changed, their file has too.
    run.write("weights", network.state_dict(), {"architecture": run.recorder.record["inputs"]["architecture"]})
    run.write("loss", "step,images,learning_rate,loss\n")
    return "ok", {
        "imported": {"path": source.as_posix(), "sha256": run.recorder.record["inputs"]["network"]},
        "steps": 0,
        "images_seen": 0,
        "parameters": sum(p.numel() for p in network.parameters()),
        "final_loss": None,
        "space": dataset.space.spec,
        "classes": dataset.classes,
    }

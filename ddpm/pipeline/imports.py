"""Networks that were trained elsewhere: what their folders must hold. No torch."""

import json

from ddpm.errors import UserError
from ddpm.pipeline.folders import located

ARCHITECTURE, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


def architecture(path: str) -> dict:
    """The architecture of a folder of diffusers' `UNet2DModel`; UserError, in one line, where there is none."""
    folder = located(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"path: {path!r} {what}; it must be a folder with {ARCHITECTURE} and {WEIGHTS}")
    if not (folder / WEIGHTS).is_file():
        pickled = next(iter(sorted((*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")))), None)
        found = f"only {pickled.name}, a pickle, which may run any code: save it again as" if pickled else "no"
        raise UserError(f"path: {path!r} holds {found} {WEIGHTS}")
    try:
        found = json.loads((folder / ARCHITECTURE).read_text(encoding="utf-8"))
        name = found["_class_name"]
    except FileNotFoundError:
        raise UserError(f"path: {path!r} holds no {ARCHITECTURE}, which names the architecture") from None
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise UserError(f"path: {(folder / ARCHITECTURE).as_posix()!r} is no description of a network ({e})") from None
    if name != "UNet2DModel":
        raise UserError(f"path: {path!r} holds a {name!r}; it must be diffusers' 'UNet2DModel'")
    return found


def misfit(path: str, found: dict, shape: tuple[int, ...]) -> str:
    """Why a network of this architecture cannot be of images of this shape (C, H, W); empty where it can."""
    size = found.get("sample_size") or shape[1:]
    size = (size, size) if isinstance(size, int) else tuple(size)
    channels = found.get("in_channels", 3), found.get("out_channels", 3)
    if (*channels, *size) == (shape[0], *shape):
        return ""
    of, here = ("×".join(map(str, s)) for s in ((channels[0], *size), shape))
    outputs = f" and has {channels[1]} channels of output" * (channels[0] != channels[1])
    return f"path: {path!r} takes images of {of}{outputs}; these data have {here}"

"""Features of real images, in files beside the data: all jobs of a data set and an extractor share them."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm.errors import UserError
from ddpm.pipeline.records import canonical, read_tensors, write_tensors

Tensor = torch.Tensor


@dataclass(frozen=True)
class Store:
    """The files of `folder`; about: what every one of them depends on, beside what it is asked for, as JSON holds it.

    A file is named by the hash of its whole key and holds the key and the hash of its content: one of another key is
    not taken, and one that is corrupt or truncated is made again. Any of them may be deleted at any time.
    """

    folder: Path
    about: str

    def features(self, key: dict[str, object], compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives, (N, D), from its file where that is whole."""
        key = key | {"about": self.about}
        path = self.folder / f"{hashlib.sha256(canonical(key).encode()).hexdigest()[:16]}.safetensors"
        with suppress(UserError):
            tensors, found = read_tensors(path)
            if found == {"key": key, "content": content(tensors.get("features", torch.empty(0)))}:
                return tensors["features"]
        features = compute()
        write_tensors(path, {"features": features}, {"key": key, "content": content(features)})
        return features


def content(features: Tensor) -> str:
    """SHA-256 of a tensor's shape and bytes."""
    return hashlib.sha256(repr(tuple(features.shape)).encode() + features.contiguous().numpy().tobytes()).hexdigest()

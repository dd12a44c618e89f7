"""LSUN."""

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Annotated

from ddpm import rng
from ddpm.datasets.dataset import Dataset, Split
from ddpm.datasets.downloads import root
from ddpm.datasets.folder import Entry, read_all
from ddpm.errors import UserError
from ddpm.parameters import Count, Index, Len


@dataclass(frozen=True)
class LSUN(Dataset):
    """One category of LSUN (Yu et al. 2015), without labels, in colour: the largest square in the middle of each image.

    category: such as bedroom, church_outdoor or cat;  size: height and width, which no image falls below.
    test:     how many images of its training database are held out: its own validation has 300, too few for FID.
    seed:     draws which.

    Read from `CATEGORY_train_lmdb` below `$DDPM_DATA`, else `data/`, where it is unpacked by hand: it is not
    downloaded, and there are no checksums of it. It takes the package lmdb.
    """

    method = "lsun"
    space = {"method": "pixels", "levels": 256}
    classes = 0
    form = ("channels", "size", "size")
    channels = 3
    category: Annotated[str, Len(1)] = "bedroom"
    size: Count = 64
    test: Count = 10000  # type: ignore[misc]  # of other datasets a fact, here a parameter
    seed: Index = 0

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.channels, self.size, self.size

    def load(self) -> tuple[Split, Split]:
        folder = root() / f"{self.category}_train_lmdb"
        if not (folder / "data.mdb").is_file():
            raise UserError(
                f"{folder / 'data.mdb'}: missing; unpack {folder.name}.zip of LSUN in {root()}, which DDPM_DATA names"
            )
        try:
            lmdb = import_module("lmdb")
        except ImportError:
            raise UserError(f"{folder}: is read with the package lmdb: `pip install lmdb`") from None
        with (
            lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False) as database,
            database.begin(write=False) as images,
        ):
            keys = list(images.cursor().iternext(keys=True, values=False))
            if len(keys) <= self.test:
                raise UserError(f"data.test: {self.test}; {folder} holds {len(keys)} images: it must be below that")
            held_out = set(rng.permutation(len(keys), "lsun", self.seed)[: self.test].tolist())
            files = {
                name: [
                    Entry(f"{folder}: {key.decode(errors='replace')}", partial(images.get, key))
                    for i, key in enumerate(keys)
                    if (i in held_out) == testing
                ]
                for name, testing in (("train", False), ("test", True))
            }
            train, test = map(Split, read_all(files, self.size, self.channels))
        return train, test

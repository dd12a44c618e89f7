"""scikit-learn's handwritten digits."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from ddpm.datasets.dataset import Dataset, Split
from ddpm.parameters import Interval

Tensor = torch.Tensor


@dataclass(frozen=True)
class Digits(Dataset):
    """scikit-learn's handwritten digits: 1 797 images of 8×8 pixels, 17 grey levels, in the package.

    Half of them (898) for training and the other half for the test, stratified by label; `seed` deals them.
    """

    method = "digits"
    space = {"method": "pixels", "levels": 17}
    shape = (1, 8, 8)
    train = 898
    test = 899
    seed: Annotated[int, Interval(ge=0, le=4294967295)] = 0  # as scikit-learn takes them

    def load(self) -> tuple[Split, Split]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        halves = train_test_split(
            digits.images.astype(np.uint8)[:, None],
            digits.target.astype(np.int64),
            test_size=0.5,
            random_state=self.seed,
            stratify=digits.target,
        )
        train_images, test_images, train_labels, test_labels = map(torch.from_numpy, halves)
        return Split(train_images, train_labels), Split(test_images, test_labels)

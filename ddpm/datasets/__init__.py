"""The datasets: images, or points in the plane; each class is one kind (see `ddpm.datasets.dataset`).

Every file of this folder is imported, so that a dataset in a file of its own is known without a line elsewhere.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

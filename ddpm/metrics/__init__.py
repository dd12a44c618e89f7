"""What samples are measured with: one class per metric, feature extractors, distances, and toplines of real images.

Every file of this folder is imported, so that a metric in a file of its own is known without a line elsewhere.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

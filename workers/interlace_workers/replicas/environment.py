"""What a traced block can import here, for clients that compare it with their own."""

import sys
from importlib.metadata import packages_distributions, version


def describe() -> dict[str, object]:
    """Python's version and import name -> version, in the form of nnsight's own report."""
    distributions = packages_distributions().items()
    packages = {name: version(found[0]) for name, found in distributions if not name.startswith("_")}
    return {"python_version": sys.version, "packages": packages}

"""Runs with the Python of a replayed image; prints JSON. Standard library only.

inside.py packages           every distribution and its version
inside.py imports NAME...    what fails to load of these packages; of exemplar, every module but the
                             integrations, whose frameworks an image does without
"""

import importlib
import importlib.metadata as metadata
import json
import pkgutil
import re
import sys
import warnings


def packages():
    """The distributions that Python finds here."""
    return {item.metadata["Name"]: item.version for item in metadata.distributions()}


def imports(asked):
    """Load the modules of the packages that are asked for; return what failed, with the reason."""
    names = set()
    if "exemplar" in asked:
        path = importlib.import_module("exemplar").__path__
        names = {module.name for module in pkgutil.walk_packages(path, "exemplar.")}
        names = {name for name in names if not name.startswith("exemplar.integrations.")}
        names.discard("exemplar.__main__")  # runs the command line
    for module, owners in metadata.packages_distributions().items():
        plain = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
        if module.isidentifier() and not module.startswith("_") and plain & asked:
            names.add(module)
    failed = []
    for name in sorted(names):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever it is, it is what a pod would see
            failed.append(f"import {name}: {type(error).__name__}: {error}")
    return failed


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(packages() if sys.argv[1] == "packages" else imports(set(sys.argv[2:]))))

"""Shape annotations are checked at run time in the tests, and only there."""

from importlib.util import find_spec

from jaxtyping import install_import_hook

if find_spec("beartype"):  # `make gpu` does without
    packages = ["subspace_lab.linalg", "subspace_lab.theory"]
    install_import_hook(packages, "beartype.beartype").__enter__()

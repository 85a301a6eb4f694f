"""Shape annotations are checked at run time in the tests, and only there."""

from jaxtyping import install_import_hook

install_import_hook(["subspace_lab.linalg", "subspace_lab.theory"], "beartype.beartype").__enter__()

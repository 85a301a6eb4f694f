"""Shape annotations are checked at run time in the tests, and only there; kinds of processors."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from jaxtyping import install_import_hook

if find_spec("beartype"):  # `make gpu` does without
    packages = ["subspace_lab.linalg", "subspace_lab.theory"]
    install_import_hook(packages, "beartype.beartype").__enter__()


@pytest.fixture(scope="module", params=[False, True], ids=["without bf16", "with bf16"])
def processor(request: pytest.FixtureRequest) -> Iterator[bool]:
    """A processor without and with instructions for bf16, as torch tells: no result depends on it.

    For tests that compare numbers more finely than bf16 rounds; whether it has the instructions.
    """
    with pytest.MonkeyPatch.context() as patch:
        for question in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            patch.setattr(torch.cpu, question, lambda: request.param, raising=False)
        yield request.param

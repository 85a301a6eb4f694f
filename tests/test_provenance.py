"""A run names the version of the package that recorded it."""

from __future__ import annotations

from importlib import metadata

from subspace_lab.provenance import provenance


def test_the_version_of_the_package_is_recorded():
    assert provenance()["versions"]["subspace_lab"] == metadata.version("subspace_lab")

"""Linear algebra of low-rank updates in their rank space: tensors in, float64 tensors out."""

from .angles import MaskedAngles, masked_angles, principal_angles
from .distances import chordal_distance, geodesic_distance, overlap
from .effective_rank import Measure, effective_rank, nuclear_norm
from .factors import RANK_TOLERANCE, triangular_factor, update_core
from .spectra import (
    LowRankSVD,
    frobenius_norm,
    inner_product,
    singular_values,
    singular_vectors,
)

__all__ = [
    "RANK_TOLERANCE",
    "LowRankSVD",
    "MaskedAngles",
    "Measure",
    "chordal_distance",
    "effective_rank",
    "frobenius_norm",
    "geodesic_distance",
    "inner_product",
    "masked_angles",
    "nuclear_norm",
    "overlap",
    "principal_angles",
    "singular_values",
    "singular_vectors",
    "triangular_factor",
    "update_core",
]

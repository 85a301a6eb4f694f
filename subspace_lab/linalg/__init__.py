"""Linear algebra of low-rank updates in their rank space: tensors in, float64 tensors out."""

from .alignment import Amplification, BaseProjection, amplification, base_projection
from .angles import MaskedAngles, masked_angles, principal_angles
from .distances import (
    chordal_distance,
    geodesic_distance,
    grassmann_overlap,
    overlap,
    pairwise_overlap,
)
from .effective_rank import Measure, effective_rank, nuclear_norm
from .intruders import IntruderDimensions, intruder_dimensions
from .merged import base_svd, merged_svd
from .nulls import (
    AngleMoments,
    NullOverlap,
    jacobi_edge,
    null_overlap,
    random_angle_moments,
    random_subspace,
)
from .principal_vectors import PrincipalVectors, principal_vectors
from .spectra import (
    LowRankSVD,
    frobenius_norm,
    inner_product,
    singular_values,
    singular_vectors,
)
from .triangular import RANK_TOLERANCE, Algorithm, triangular_factor, update_core

__all__ = [
    "RANK_TOLERANCE",
    "Algorithm",
    "Amplification",
    "AngleMoments",
    "BaseProjection",
    "IntruderDimensions",
    "LowRankSVD",
    "MaskedAngles",
    "Measure",
    "NullOverlap",
    "PrincipalVectors",
    "amplification",
    "base_projection",
    "base_svd",
    "chordal_distance",
    "effective_rank",
    "frobenius_norm",
    "geodesic_distance",
    "grassmann_overlap",
    "inner_product",
    "intruder_dimensions",
    "jacobi_edge",
    "masked_angles",
    "merged_svd",
    "nuclear_norm",
    "null_overlap",
    "overlap",
    "pairwise_overlap",
    "principal_angles",
    "principal_vectors",
    "random_angle_moments",
    "random_subspace",
    "singular_values",
    "singular_vectors",
    "triangular_factor",
    "update_core",
]

import pytest
import torch
from torch import nn
from torch.nn import functional

from subspace_lab.theory.probe import MaskProbe, probe_mask

IN, OUT = 24, 20


class Masked(nn.Module):
    """y = B mask(A dropout(x)), a stand-in for other people's layers."""

    def __init__(self, mask, *, rank=8, input_dropout=0.0, zero_init=False):
        super().__init__()
        generator = torch.Generator().manual_seed(rank)
        self.A = nn.Parameter(torch.randn(rank, IN, generator=generator))
        self.B = nn.Parameter(torch.randn(OUT, rank, generator=generator) * (not zero_init))
        self.dropout = nn.Dropout(input_dropout)
        self.mask = mask

    def forward(self, x):
        h = self.dropout(x) @ self.A.T
        return (self.mask(h) if self.training else h) @ self.B.T


def token_dropout(keep_prob):
    """As in the released DropLoRA code: nn.Dropout on the output of lora_A."""
    return nn.Dropout(1 - keep_prob)


def sample_dropout(keep_prob):
    """As `rank_dropout` of kohya's sd-scripts."""
    return lambda h: h * (torch.rand(len(h), 1, h.shape[-1]) < keep_prob) / keep_prob


def call_dropout(keep_prob, *, rescale):
    """As `rank_dropout` of LyCORIS: one r-vector per call, rescaled by its own mean if asked."""

    def mask(h):
        kept = (torch.rand(h.shape[-1]) < keep_prob).to(h.dtype)
        return h * (kept / kept.mean() if rescale else kept)

    return mask


class StepMask:
    """Eq. 2 of the paper: one mask per optimizer step, no rescale."""

    def __init__(self, keep_prob, rank=8):
        self.keep_prob, self.rank = keep_prob, rank
        self.advance()

    def advance(self):
        self.kept = torch.rand(self.rank) < self.keep_prob

    def __call__(self, h):
        return h * self.kept


def exact_k(kept):
    def mask(h):
        order = torch.rand(h.shape).argsort(-1)
        return h * (order < kept)

    return mask


def record(deviation, found, granularity, keep_prob, factor, rescale):
    assert found.granularity == granularity, found
    assert found.rescale == rescale, found
    assert found.doubts == ()
    for name, estimate, true in [
        ("keep_prob", found.keep_prob, keep_prob),
        ("rescale factor", found.rescale_factor, factor),
    ]:
        if true is None:
            assert estimate is None
            continue
        error = abs(estimate.value - true) / (estimate.standard_error + 1e-3)
        statement = f"T7: probed {name}, mask per {granularity}, standard errors (+ 0.001)"
        deviation(statement, probe_mask, error, 4)


KEEP_PROBS = pytest.mark.parametrize(
    ("rank", "keep_prob"), [(8, 0.5), (8, 0.8), (12, 0.3), (3, 0.6)]
)
INPUT_DROPOUT = pytest.mark.parametrize("input_dropout", [0.0, 0.05])


@KEEP_PROBS
@INPUT_DROPOUT
def test_token_mask_of_the_released_code(deviation, rank, keep_prob, input_dropout):
    layer = Masked(token_dropout(keep_prob), rank=rank, input_dropout=input_dropout)
    found = probe_mask(layer, IN, max_rank=12)
    record(deviation, found, "token", keep_prob, 1 / keep_prob, "inverse_keep_prob")
    assert found.rank == rank and found.shared_between_calls is False
    assert found.input_keep_prob == pytest.approx(1 - input_dropout, abs=0.02)


@KEEP_PROBS
@INPUT_DROPOUT
def test_sample_mask(deviation, rank, keep_prob, input_dropout):
    layer = Masked(sample_dropout(keep_prob), rank=rank, input_dropout=input_dropout)
    found = probe_mask(layer, IN, max_rank=12)
    record(deviation, found, "sample", keep_prob, 1 / keep_prob, "inverse_keep_prob")
    assert found.rank == rank and found.shared_between_calls is False
    assert found.input_keep_prob == pytest.approx(1 - input_dropout, abs=0.02)


@INPUT_DROPOUT
def test_step_mask_of_equation_2(deviation, input_dropout):
    mask = StepMask(0.7)
    layer = Masked(mask, input_dropout=input_dropout)
    found = probe_mask(layer, IN, advance=mask.advance, max_rank=12)
    record(deviation, found, "step", 0.7, 1.0, "none")
    assert found.shared_between_calls is True


def test_step_mask_that_never_advances_is_undecided():
    found = probe_mask(Masked(StepMask(0.7)), IN, max_rank=12)
    assert found.granularity == "undecided" and found.keep_prob is None
    assert "same in all calls" in found.doubts[0]


@INPUT_DROPOUT
@pytest.mark.parametrize("rescale", [False, True])
def test_mask_per_call(deviation, rescale, input_dropout):
    layer = Masked(call_dropout(0.7, rescale=rescale), rank=12, input_dropout=input_dropout)
    found = probe_mask(layer, IN, max_rank=12)
    kind, factor = ("mask_mean", None) if rescale else ("none", 1.0)
    record(deviation, found, "step", 0.7, factor, kind)
    assert found.shared_between_calls is False


@pytest.mark.parametrize("keep_prob", [0.2, 0.5, 0.9])
def test_a_plain_function_without_reference(deviation, keep_prob):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, IN, generator=generator, dtype=torch.float64)
    B = torch.randn(OUT, 6, generator=generator, dtype=torch.float64)

    def layer(x):
        return functional.dropout(x @ A.T, 1 - keep_prob) @ B.T

    found = probe_mask(layer, IN, max_rank=12, dtype=torch.float64)
    assert found.granularity == "token" and found.rescale == "undecided"
    assert "no unmasked output" in found.doubts[0]
    error = abs(found.keep_prob.value - keep_prob) / found.keep_prob.standard_error
    deviation("T7: keep_prob without a reference, standard errors", probe_mask, error, 4)
    found = probe_mask(layer, IN, full=lambda x: x @ A.T @ B.T, max_rank=12, dtype=torch.float64)
    assert found.rescale == "inverse_keep_prob"


@pytest.mark.parametrize(
    "layer",
    [
        Masked(nn.Identity()),
        Masked(nn.Identity(), input_dropout=0.3),
        Masked(nn.Dropout(0.5), zero_init=True),
        Masked(nn.Dropout(0.5), rank=1),
    ],
    ids=["deterministic", "input dropout alone", "B = 0", "rank 1"],
)
def test_no_mask_shows(layer):
    found = probe_mask(layer, IN, max_rank=12, steps=32)
    assert found == MaskProbe(doubts=found.doubts) and "no mask" in found.doubts[0]


def test_exact_k_token_mask_has_no_keep_prob():
    found = probe_mask(Masked(exact_k(3)), IN, max_rank=12)
    assert found.granularity == "token" and found.keep_prob is None
    assert "not binomial" in found.doubts[0]


def test_dependent_factors_have_no_keep_prob():
    layer = Masked(nn.Dropout(0.5))
    with torch.no_grad():
        layer.B[:, 5:] = layer.B[:, :3]
    found = probe_mask(layer, IN, max_rank=12)
    assert found.granularity == "token" and found.keep_prob is None
    assert "dependent factors" in found.doubts[0]


def test_too_little_evidence_is_undecided():
    layer = Masked(sample_dropout(0.5), rank=2)
    found = probe_mask(layer, IN, steps=16, batch=2, max_rank=12)
    assert found.granularity == "undecided" and "too few steps" in found.doubts[0]
    assert found.certainty < 4 and found.keep_prob is None
    assert probe_mask(layer, IN, steps=128, max_rank=12).granularity == "sample"


def test_mask_that_dwells_two_calls():
    state = {"calls": 0}

    def mask(h):
        if state["calls"] % 2 == 1:
            state["kept"] = torch.rand(8) < 0.5
        state["calls"] += 1
        return h * state.get("kept", torch.ones(8))

    found = probe_mask(Masked(mask), IN, max_rank=12)
    assert found.granularity == "step" and found.shared_between_calls is None
    assert "only some" in found.doubts[0]


def test_mask_along_the_batch():
    found = probe_mask(Masked(lambda h: h * (torch.rand(h.shape[1:]) < 0.5)), IN, max_rank=12)
    assert found.granularity == "undecided" and "none of the known" in found.doubts[0]


@pytest.mark.parametrize(
    ("layer", "dtype", "reason"),
    [
        (Masked(nn.Dropout(0.5), rank=14), torch.float32, "span all"),
        (Masked(nn.Dropout(0.5)).bfloat16(), torch.bfloat16, "half precision"),
        (
            lambda x: functional.dropout(x @ torch.full((IN, 4), torch.nan)),
            torch.float32,
            "not finite",
        ),
    ],
    ids=["rank too large", "half precision", "nan"],
)
def test_what_hides_the_keep_prob(layer, dtype, reason):
    found = probe_mask(layer, IN, max_rank=7, dtype=dtype, steps=32)
    assert found.keep_prob is None and reason in found.doubts[0]


def test_the_probe_leaves_no_trace():
    layer = Masked(token_dropout(0.5)).eval()
    layer.dropout.train()
    state = torch.get_rng_state()
    first, second = (probe_mask(layer, IN, max_rank=12, steps=16) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first.keep_prob.value == pytest.approx(second.keep_prob.value, rel=1e-9)
    assert not layer.training and layer.dropout.training


def test_wrong_arguments():
    with pytest.raises(ValueError, match="steps"):
        probe_mask(Masked(nn.Dropout(0.5)), IN, steps=4)

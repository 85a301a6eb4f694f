"""The methods against their definitions: what they are at the start, and what is saved."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from subspace_lab.adapters.conversion import SaveOnOriginalBase, taken_out_of_the_base
from subspace_lab.adapters.full import TRUNCATION_FILE, FullChange
from subspace_lab.adapters.mask import RankMask
from subspace_lab.adapters.methods import adapt, lora_config, peft_config_from_file
from subspace_lab.adapters.modules import lora_modules
from subspace_lab.errors import UserError
from subspace_lab.module_table import MODULE_COLUMNS
from subspace_lab.peft_files.adapter_folder import AdapterFolder
from tests.tiny import TARGETS, batch, tiny_llama

FIELDS = {"rank": 4, "alpha": 8.0, "targets": TARGETS}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch()).logits


def adapted(method: str, **options) -> PeftModel:
    config = lora_config(method, **(FIELDS | options))
    return adapt(tiny_llama(), config, seed=0, method=method)


def move(model: torch.nn.Module, seed: int = 1) -> None:
    """Move all trainable parameters at random, as training would."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def with_spectrum(m: int, n: int, spectrum: torch.Tensor) -> torch.Tensor:
    """Plant singular values in a random (m, n) weight."""
    U, _ = torch.linalg.qr(torch.randn(m, len(spectrum), dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(n, len(spectrum), dtype=torch.float64))
    return (U * spectrum @ V.T).float()


@pytest.mark.parametrize("method", ["lora", "dora", "pissa", "milora"])
def test_model_starts_out_as_its_base(method):
    torch.testing.assert_close(logits(adapted(method)), logits(tiny_llama()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(("method", "taken"), [("pissa", slice(0, 4)), ("milora", slice(28, 32))])
def test_planted_singular_values_go_into_the_adapter(method, taken, use_rslora):
    planted = torch.linspace(5, 0.5, 32, dtype=torch.float64)
    base = tiny_llama()
    for layer in base.model.layers:
        layer.self_attn.q_proj.weight.data = with_spectrum(32, 32, planted)
    config = lora_config(method, **FIELDS, use_rslora=use_rslora)
    model = adapt(base, config, seed=0, method=method)
    (module, *_) = [m for m in lora_modules(model) if m.name.endswith("q_proj")]
    update = module.scaling * module.B.double() @ module.A.double()
    left = [s for i, s in enumerate(planted) if i not in range(32)[taken]]
    residual = module.layer.get_base_layer().weight.double()
    torch.testing.assert_close(torch.linalg.svdvals(update)[:4], planted[taken], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        torch.linalg.svdvals(residual)[:28], torch.stack(left), rtol=1e-5, atol=0
    )
    # A and B share the singular values evenly.
    torch.testing.assert_close(module.B.T @ module.B, module.A @ module.A.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("method", ["pissa", "milora"])
def test_saved_adapter_gives_the_trained_model_on_the_original_base(method, use_rslora, tmp_path):
    pattern = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 5}}
    model = adapted(method, use_rslora=use_rslora, overrides=pattern)
    save = SaveOnOriginalBase(taken_out_of_the_base(model))
    move(model)
    save(model, tmp_path)
    reloaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert (logits(model) - logits(tiny_llama())).abs().max() > 0.1
    torch.testing.assert_close(logits(reloaded), logits(model), atol=2e-5, rtol=1e-4)
    ranks = set(AdapterFolder(tmp_path).modules["r"])
    assert ranks == {4, 8}


def test_converted_adapter_of_an_untrained_model_is_exactly_zero(tmp_path):
    model = adapted("pissa")
    SaveOnOriginalBase(taken_out_of_the_base(model))(model, tmp_path)
    folder = AdapterFolder(tmp_path)
    for module in folder.modules["module"]:
        factors = folder.factors(module)
        assert (factors.B.double() @ factors.A.double()).abs().max() < 1e-15


def test_conversion_agrees_with_pefts_own(tmp_path):
    model = adapted("pissa")
    model.peft_config["default"].init_lora_weights = True  # PEFT's instructions
    model.save_pretrained(tmp_path / "initial")
    save = SaveOnOriginalBase(taken_out_of_the_base(model))
    move(model)
    save(model, tmp_path / "ours")
    model.save_pretrained(
        tmp_path / "pefts", path_initial_model_for_weight_conversion=tmp_path / "initial"
    )
    ours, pefts = AdapterFolder(tmp_path / "ours"), AdapterFolder(tmp_path / "pefts")
    for module in ours.modules["module"]:
        mine, theirs = ours.factors(module), pefts.factors(module)
        assert mine.scaling == theirs.scaling
        torch.testing.assert_close(mine.B @ mine.A, theirs.B @ theirs.A)


def test_the_conversion_of_a_compiled_model_is_that_of_the_model(tmp_path):
    model = adapted("pissa")
    save = SaveOnOriginalBase(taken_out_of_the_base(model))
    move(model)
    save(model, tmp_path / "plain")
    save(torch.compile(model, backend="eager"), tmp_path / "compiled")
    files = [tmp_path / kind / "adapter_model.safetensors" for kind in ("plain", "compiled")]
    plain, compiled = map(load_file, files)
    assert plain.keys() == compiled.keys()
    assert all(torch.equal(plain[key], compiled[key]) for key in plain)


@pytest.mark.parametrize("method", ["pissa", "milora"])
def test_a_rank_above_the_smaller_side_is_refused(method):
    with pytest.raises(UserError, match="16 x 32 and does not have 20 singular directions"):
        adapted(method, rank=20, targets=["k_proj"])


@pytest.mark.parametrize("method", ["pissa", "milora"])
def test_dropout_and_masks_on_a_nonzero_start_are_warned_of(method):
    with pytest.warns(UserWarning, match="lora_dropout 0.05 changes"):
        lora_config(method, **FIELDS, lora_dropout=0.05)
    with pytest.warns(UserWarning, match="from its first step on"):
        RankMask(0.5).attach(adapted(method))


def test_plain_methods_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        RankMask(0.5).attach(adapted("dora", lora_dropout=0.05))


def test_full_trains_the_targets_and_nothing_else():
    model = tiny_llama()
    FullChange(model, TARGETS, rank=None)
    trained = {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(TARGETS)


def test_complete_snapshot_of_full_is_the_trained_model(tmp_path):
    model = tiny_llama()
    change = FullChange(model, TARGETS, rank=None)
    move(model)
    change(model, tmp_path)
    reloaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    torch.testing.assert_close(logits(reloaded), logits(model), atol=2e-5, rtol=1e-4)
    assert set(json.loads((tmp_path / TRUNCATION_FILE).read_text()).values()) == {0.0}
    read, table = (
        modules[MODULE_COLUMNS].sort_values("module", ignore_index=True)
        for modules in (AdapterFolder(tmp_path).modules, change.modules)
    )
    assert read.equals(table)


def test_truncated_snapshot_of_full_states_what_is_missing(tmp_path):
    model = tiny_llama()
    change = FullChange(model, ["q_proj"], rank=2)
    layers = [layer.self_attn.q_proj for layer in model.model.layers]
    layers[0].weight.data += with_spectrum(32, 32, torch.tensor([4.0, 3.0, 2.0, 1.0]).double())
    change(model, tmp_path)
    missing = json.loads((tmp_path / TRUNCATION_FILE).read_text())
    assert missing["model.layers.0.self_attn.q_proj"] == pytest.approx((5 / 30) ** 0.5, rel=1e-5)
    assert missing["model.layers.1.self_attn.q_proj"] == 0
    factors = AdapterFolder(tmp_path).factors("model.layers.0.self_attn.q_proj")
    torch.testing.assert_close(
        torch.linalg.svdvals(factors.B @ factors.A)[:3],
        torch.tensor([4.0, 3.0, 0.0]),
        atol=1e-5,
        rtol=0,
    )


def test_full_refuses_a_base_that_is_not_fp32():
    with pytest.raises(UserError, match="fp32"):
        FullChange(tiny_llama().bfloat16(), TARGETS, rank=None)


def test_peft_config_file_overrides_a_methods_fields(tmp_path):
    file = tmp_path / "further.yaml"
    file.write_text("layers_to_transform: [1]\nr: 2\n")
    config = peft_config_from_file(file, FIELDS | {"method": "dora"})
    model = adapt(tiny_llama(), config, seed=0)
    assert {(m.name.split(".")[2], m.rank) for m in lora_modules(model)} == {("1", 2)}
    assert config.use_dora


def test_the_configuration_of_a_saved_adapter_can_be_trained_anew(tmp_path):
    adapted("dora").save_pretrained(tmp_path)
    config = peft_config_from_file(tmp_path / "adapter_config.json", FIELDS | {"method": "lora"})
    assert config.use_dora and config.r == FIELDS["rank"]
    assert any(p.requires_grad for p in adapt(tiny_llama(), config, seed=0).parameters())


def test_peft_config_file_may_name_another_kind(tmp_path):
    file = tmp_path / "vera.json"
    file.write_text('{"peft_type": "LOHA", "r": 3}')
    config = peft_config_from_file(file, FIELDS)
    assert (config.peft_type.value, config.r, set(config.target_modules)) == (
        "LOHA",
        3,
        set(TARGETS),
    )


def test_prefix_tuning_changes_the_function_and_no_weight(tmp_path):
    file = tmp_path / "prefix.yaml"
    file.write_text("peft_type: PREFIX_TUNING\nnum_virtual_tokens: 4\n")
    model = adapt(tiny_llama(), peft_config_from_file(file, FIELDS), seed=0)
    before = logits(model)
    move(model)
    assert (logits(model) - before).abs().max() > 1e-3
    base = tiny_llama().state_dict()
    kept = {name: p for name, p in model.get_base_model().state_dict().items() if name in base}
    assert kept.keys() == base.keys()
    assert all(torch.equal(base[name], parameter) for name, parameter in kept.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rnk: 2", "no field 'rnk'"),
        ("peft_type: NONSENSE", "peft_type NONSENSE is unknown"),
        ("- 1", "holds no fields"),
        ("peft_type: P_TUNING", "virtual tokens before the input"),
        ("peft_type: PROMPT_TUNING", "use PREFIX_TUNING"),
        ("{", "neither JSON nor YAML"),
    ],
)
def test_bad_peft_config_files_are_refused(tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        peft_config_from_file(file, FIELDS)

"""The configuration of a training run: one flat dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from subspace_lab.adapters.methods import Method, default_alpha, read_peft_fields
from subspace_lab.errors import UserError
from subspace_lab.theory.mask_law import MaskLaw, Rescale, Schedule, mask_law, rescale_name
from subspace_lab.training.config_checks import check_combinations
from subspace_lab.training.objective import Kind

COUNTS = (
    "rank", "snapshot_rank", "train_size", "eval_size", "test_size", "max_length", "batch_size",
    "accumulation", "global_batch", "block_size", "dwell", "schedule_steps", "masks_per_step",
    "galore_refresh", "initialization_examples",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "init_seed", "data_seed", "mask_seed", "noise_seed", "restart_every",
    "warmup_steps", "weight_decay", "max_grad_norm", "log_every", "eval_every",
    "checkpoint_every",
)  # fmt: skip

PEFT_NAMES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "targets": "target_modules",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
}
"""Fields that PEFT's LoraConfig has by another name."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run.

    Args:
        base: base model: `pocket`, `smollm2` (from its wheel), a folder, or a hub id.
        base_dtype: `bf16` (under bf16 autocast), `fp32`, or `auto`: bf16 on a GPU that computes in
            it, fp32 on every processor and for the pocket base. Adapters are stored in fp32 in
            both, and `full` is trained in fp32.
        method: `lora`, `droplora` (LoRA with a rank mask), `dora`, `pissa`, `milora`, `olora`,
            `lora_ga`, `corda`, `eva`, `adalora`, `full` (the targets' own weights), or `galore`
            (the same by low-rank gradient projection).
        rank_mask: put the rank mask on `dora`, `pissa` or `milora` as well.
        rank: rank r of the adapter, or of GaLore's projections; of `adalora` the mean at the end.
        alpha: numerator of the scaling alpha / r; unset: the paper's rule, r for `pissa` and
            `milora` and 2 r for the others.
        targets: last path components of the linear layers to adapt, such as `q_proj v_proj`.
        lora_dropout: dropout probability on the adapter's input (the paper: 0.05).
        use_rslora: scale by alpha / sqrt(r) instead of alpha / r.
        peft_config: JSON or YAML file with further LoraConfig fields, which win over the method's;
            or with another peft_type and its fields.
        galore_refresh: of `galore`: steps until its projections are drawn anew.
        galore_scale: of `galore`: factor on the step (its authors: 0.25 in pretraining, up to 4 in
            fine-tuning).
        freeze: a factor that is not trained: `A` (LoRA-FA), or `B`, which then starts at random
            and A at zero.
        lora_plus_ratio: learning rate of B over that of A, which is `learning_rate` (LoRA+).
        restart_every: steps until the adapter is merged into the base and begins anew (ReLoRA);
            0: never. The learning rate is not warmed up again.
        restart: whether a restart draws A anew (`redraw`) or keeps it (`keep_a`).
        reset_optimizer: what a restart does to Adam's moments of A and B: `true` forgets them,
            `false` keeps them, `prune:0.99` zeroes the smallest 99 % of each.
        initial_rank: of `adalora`: rank of every layer at the start (unset: 1.5 x rank).
        allocation_start: of `adalora`: share of the steps after which the budget of ranks shrinks.
        allocation_end: of `adalora`: share of the steps after which ranks stay as they are.
        initialization_examples: of `lora_ga`, `corda` and `eva`: training examples that they look
            at before training.
        snapshot_rank: of `full` and `galore`: singular directions of each weight's change that a
            snapshot keeps (unset: all, so that it is the trained model).
        keep_prob: probability that a rank direction is kept, in (0, 1] (the paper calls its
            complement the pruning rate).
        granularity: what shares one mask: an optimizer `step`, a `sample`, or a `token`.
        rescale: multiply what is kept by 1 / keep_prob (`keep_prob`, or true), by 1 / the share
            that the draw keeps (`realized`), or not at all (`none`, or false).
        sampling: law of the gates: `bernoulli` masks, `exact-k` (always keep_prob x rank
            directions), `antithetic` (a mask, then its complement), `two` (masks in turn), `blocks`
            of directions, `prefix` (DyLoRA), `fixed` (MatryoshkaLoRA), `gaussian` numbers, `haar`
            projectors; `prefix` and `fixed` have no keep_prob.
        block_size: directions in a block of `blocks`.
        prefix_geometric: draw the length b of a `prefix` with probability ~ (1 - p)^(b - 1), p in
            (0, 1), instead of uniformly.
        nested_ranks: ranks among which `prefix` draws, and over which `fixed` takes the mean.
        dwell: optimizer steps that use one draw.
        keep_prob_schedule: `constant`, `linear` (pruning fades out), `early` (masks in the first
            steps only) or `late` (none in them).
        schedule_steps: steps that the schedule takes (unset: all of `steps` for `linear`, half of
            them for `early` and `late`).
        keep_prob_pattern: keep_prob of some modules, by name endings or regular expressions, as in
            PEFT's rank_pattern.
        shared_mask: use one draw for all modules.
        masks_per_step: K, the masks over which the loss of every step is averaged, a forward and a
            backward pass for each.
        objective: what is descended of a rank mask (see `training.objective`): its masked `loss`;
            `noise-only`, the loss without masks, its gradient with a masked gradient's noise;
            `penalty`, the loss without masks plus `penalty_strength` times the regularizer that
            masks are on a linear layer; or `second-order`, the masked loss to second order.
        penalty_strength: factor of `penalty` and `second-order` (unset: (1 - keep_prob) /
            keep_prob, as masks of keep_prob have it).
        training_loss: `cross_entropy`, or `brier`, a squared loss of the predicted distribution
            (see `training.loss`). What evaluations report stays in nats.
        task: name of the task (see `subspace_lab.tasks`), a .jsonl file of your own, or a single
            generator (`reasoning_gym:gcd`); several joined by "+" share the examples equally.
        data_dir: folder with task files in LLM-Adapters' layout; unset: generated, or the hub.
        difficulty: difficulty of built-in tasks: `easy`, `medium` or `hard`.
        label_noise: fraction of training examples with another example's response, in [0, 1];
            what is evaluated has none.
        train_split: `train`, or `train+validation` once everything has been chosen.
        eval_split: what is evaluated during training: `validation` (held out of the training
            examples), `test` or `none`. Whatever is chosen by these numbers must be chosen on
            `validation`.
        train_size: training examples, before `drop_long_rows` drops some (unset: all).
        eval_size: examples for evaluations during training (unset: all).
        test_size: test examples that are scored once, when training is over: the last step, and
            the one that validation chose, `chosen_step` (unset: none).
        early_stopping: save the adapter of `chosen_step`, the evaluated step with the lowest loss
            on validation examples, as a snapshot; training continues to its last step.
        max_length: maximum tokens per example; longer ones are refused, never truncated.
        drop_long_rows: drop longer examples, and record how many, instead of refusing them.
        group_by_length: batch examples of similar length together: less padding, but batches are no
            longer uniform draws.
        steps: optimizer steps; 0: as many as `epochs` needs.
        epochs: passes over the training set where `steps` is 0.
        batch_size: examples per device and forward pass.
        accumulation: forward passes per optimizer step.
        global_batch: examples per optimizer step over all devices and forward passes; sets
            `accumulation` for the number of processes (unset: batch_size x accumulation x
            processes).
        learning_rate: peak learning rate.
        lr_schedule: `linear`, `cosine` or `constant`, after the warm-up.
        warmup_steps: steps of linear warm-up.
        weight_decay: decoupled weight decay.
        optimizer: `adamw` or `sgd` (plain, no momentum).
        adam_epsilon: what AdamW adds to the root of the second moment; larger ones make its steps
            more like those of SGD.
        max_grad_norm: gradients are clipped to this norm; 0: not at all.
        gradient_checkpointing: recompute activations in the backward pass, to save memory.
        compile: compile the model with torch.compile.
        seed: seed of all that is random in training; what is evaluated is the same for all seeds.
        init_seed: seed of the adapter's first weights (unset: `seed`, as for those that follow).
        data_seed: seed of the training examples and of their order.
        mask_seed: seed of the masks.
        noise_seed: seed of the label noise and of the dropout on the adapter's input.
        cores: when to record rank cores: full, light, minimal, never, every:K, log:K or 1,2,5.
        snapshots: when to save whole adapters (same syntax as `cores`); the first and the last are
            always saved.
        log_every: steps between two logs of what the record says, beside the loss: medians over
            modules of the update's effective rank and others (see `runs.step_numbers`); cores of
            these steps are recorded as well. 0: none.
        report_to: trackers that get what is logged: `tensorboard`, `wandb`, `trackio`, `mlflow`
            and whatever else the Trainer knows.
        eval_every: steps between evaluations; 0: only before and after training.
        checkpoint_every: steps between checkpoints to resume from; 0: none.

    Raises:
        UserError: if a value lies outside its range.
    """

    base: str = "pocket"
    base_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    method: Method = "lora"
    rank_mask: bool = False
    rank: int = 8
    alpha: float | None = None
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    )
    lora_dropout: float = 0.0
    use_rslora: bool = False
    peft_config: str | None = None
    galore_refresh: int = 200
    galore_scale: float = 0.25
    freeze: Literal["A", "B"] | None = None
    lora_plus_ratio: float | None = None
    restart_every: int = 0
    restart: Literal["redraw", "keep_a"] = "redraw"
    reset_optimizer: bool | str = True
    initial_rank: int | None = None
    allocation_start: float = 0.1
    allocation_end: float = 0.5
    initialization_examples: int = 64
    snapshot_rank: int | None = None
    keep_prob: float = 0.5
    granularity: Literal["step", "sample", "token"] = "step"
    rescale: Rescale | bool = "keep_prob"
    sampling: Literal[
        "bernoulli", "exact-k", "antithetic", "two", "blocks", "prefix", "fixed", "gaussian", "haar"
    ] = "bernoulli"
    block_size: int | None = None
    prefix_geometric: float | None = None
    nested_ranks: list[int] | None = None
    dwell: int = 1
    keep_prob_schedule: Schedule = "constant"
    schedule_steps: int | None = None
    keep_prob_pattern: dict[str, float] | None = None
    shared_mask: bool = False
    masks_per_step: int = 1
    objective: Kind = "loss"
    penalty_strength: float | None = None
    training_loss: Literal["cross_entropy", "brier"] = "cross_entropy"
    task: str = "pocket"
    data_dir: str | None = None
    difficulty: str = "easy"
    label_noise: float = 0.0
    train_split: Literal["train", "train+validation"] = "train"
    eval_split: Literal["validation", "test", "none"] = "validation"
    train_size: int | None = None
    eval_size: int | None = None
    test_size: int | None = None
    early_stopping: bool = False
    max_length: int = 512
    drop_long_rows: bool = False
    group_by_length: bool = False
    steps: int = 0
    epochs: float = 1.0
    batch_size: int = 8
    accumulation: int = 1
    global_batch: int | None = None
    learning_rate: float = 3e-4
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: int = 0
    init_seed: int | None = None
    data_seed: int | None = None
    mask_seed: int | None = None
    noise_seed: int | None = None
    cores: str = "full"
    snapshots: str = "never"
    log_every: int = 0
    report_to: list[str] = field(default_factory=list)
    eval_every: int = 0
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rescale", rescale_name(self.rescale))
        if not 0 < self.keep_prob <= 1:
            raise UserError(f"`keep_prob` must lie in (0, 1], not {self.keep_prob}")
        for name in (*COUNTS, *NOT_NEGATIVE):
            value, minimum = getattr(self, name), 1 if name in COUNTS else 0
            if value is not None and value < minimum:
                raise UserError(f"`{name}` must be at least {minimum}, not {value}")
        positive = (
            "alpha", "learning_rate", "penalty_strength", "galore_scale", "lora_plus_ratio",
            "adam_epsilon",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"`{name}` must be above 0, not {value}")
        for name in ("label_noise", "lora_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"`{name}` must lie in [0, 1], not {getattr(self, name)}")
        if self.steps < 0 or (self.steps == 0 and self.epochs <= 0):
            raise UserError("set `steps` or `epochs` above 0")
        if not self.targets:
            raise UserError("`targets` is empty: name at least one linear layer, such as q_proj")
        check_combinations(self)
        if self.restart_every:
            _ = self.pruned_moments  # refuses an unknown `reset_optimizer`
        if self.masked:
            self.mask_law()  # refuses settings that do not fit together

    @property
    def adalora_rank(self) -> int:
        """The rank that AdaLoRA starts with."""
        return self.initial_rank or math.ceil(1.5 * self.rank)

    @property
    def pruned_moments(self) -> float:
        """The share of Adam's moments that a restart zeroes, by `reset_optimizer`.

        Raises:
            UserError: if that is none of true, false and prune:SHARE.
        """
        kind, _, share = str(self.reset_optimizer).lower().partition(":")
        try:
            pruned = {"true": 1.0, "false": 0.0}[kind] if kind != "prune" else float(share)
        except (KeyError, ValueError):
            pruned = -1.0
        if not 0 <= pruned <= 1:
            raise UserError(
                f"`reset_optimizer` {self.reset_optimizer!r} is not known: set true, false or "
                "prune:SHARE with a share in [0, 1], such as prune:0.99"
            )
        return pruned

    @property
    def masked(self) -> bool:
        """Whether a rank mask is on in training."""
        return self.method == "droplora" or self.rank_mask

    def mask_law(self) -> MaskLaw:
        """Make the law of the gates.

        Raises:
            UserError: if the settings do not fit together.
        """
        own = {"block_size", "prefix_geometric", "nested_ranks"}
        settings = {name: value for name in own if (value := getattr(self, name)) is not None}
        return mask_law(
            self.keep_prob,
            sampling=self.sampling,
            granularity=self.granularity,
            rescale=self.rescale,
            seed=self.seed_of("mask"),
            dwell=self.dwell,
            schedule=self.keep_prob_schedule,
            schedule_steps=self._schedule_steps(),
            keep_prob_pattern=self.keep_prob_pattern or {},
            shared=self.shared_mask,
            **settings,
        )

    def _schedule_steps(self) -> int | None:
        if self.keep_prob_schedule == "constant" or self.schedule_steps is not None:
            return self.schedule_steps
        if not self.steps:
            raise UserError(
                f"`keep_prob_schedule` {self.keep_prob_schedule} needs `steps` or `schedule_steps`"
            )
        return self.steps if self.keep_prob_schedule == "linear" else max(self.steps // 2, 1)

    def seed_of(self, source: Literal["init", "data", "mask", "noise"]) -> int:
        """Give the seed of one source of randomness: its own, else `seed`."""
        own: int | None = getattr(self, f"{source}_seed")
        return self.seed if own is None else own

    @property
    def chooses(self) -> bool:
        """Whether validation examples choose a step."""
        reports = self.test_size is not None and self.eval_split == "validation"
        return self.early_stopping or reports

    @property
    def scaling_alpha(self) -> float:
        """The numerator of the scaling, by the paper's rule where `alpha` is unset."""
        return default_alpha(self.method, self.rank) if self.alpha is None else self.alpha

    def to_dict(self) -> dict[str, Any]:
        """Return what is trained as plain values: `alpha` and the fields of `peft_config` resolved.

        Raises:
            UserError: if the file `peft_config` cannot be read.
        """
        values = asdict(self) | {"alpha": self.scaling_alpha}
        if self.peft_config is not None:
            given = read_peft_fields(self.peft_config)
            values["peft_config"] = given
            shared = {name: other for name, other in PEFT_NAMES.items() if other in given}
            values |= {name: given[other] for name, other in shared.items()}
        return values


def filled_in(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what a record of an older version lacks: fields whose defaults train as it did."""
    filled = asdict(TrainConfig()) | dict(recorded)
    return filled | {"rescale": rescale_name(filled["rescale"])}

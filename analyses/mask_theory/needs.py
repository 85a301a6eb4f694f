"""What testing a prediction about a group of modules may take."""

from __future__ import annotations

from analyses.mask_theory.prediction import Need

CORES = Need(lambda group: group.core_steps, "no finite cores were recorded")
EVERY_STEP = Need(
    lambda group: group.displacements, "it takes recorded cores of every step from 1 on", CORES
)
DISPLACEMENTS = Need(
    lambda group: group.core_steps[-1] > 0 and group.cores[1].row.previous,
    "no displacements were recorded",
    CORES,
)
FROM_ZERO = Need(lambda group: group.starts_at_zero, "no record of B = 0 at step 0", EVERY_STEP)
INDEPENDENT_ROWS = Need(
    lambda group: (group.modules["n"] >= group.rank).all(),
    "the rank exceeds the number of inputs of a layer",
)
RANDOM_START = Need(
    lambda group: group.starts_at_random,
    "A did not start at random with B = 0",
    CORES,
    INDEPENDENT_ROWS,
)

LAWS_OWN_GATES = Need(
    lambda group: not group.run.gates_chosen,
    "training chose its gates itself (see `objective`), so its steps have no single mask",
)
GATES = Need(lambda group: group.gates, "no gates were observed in training", LAWS_OWN_GATES)
UNMASKED = Need(lambda group: group.law is None, "the run has a rank mask")
MASKED = Need(lambda group: group.law, "the run has no rank mask")
MASKS = Need(
    lambda group: group.law is None or group.law.binary,
    "the gates are not masks: no direction is kept or dropped",
)
INDEPENDENT_DRAWS = Need(
    lambda group: not group.law.dependence,
    "masks of steps and modules are not independent draws of one law",
    MASKED,
    MASKS,
)
ONE_FACTOR = Need(
    lambda group: group.law is None or group.law.one_factor,
    "kept gates do not have one factor: they are rescaled draw by draw, or keep_prob varies",
    MASKS,
)
EXCHANGEABLE = Need(
    lambda group: group.law.exchangeable,
    "the mask law does not treat all directions alike",
    INDEPENDENT_DRAWS,
)
COVERED_LAW = Need(lambda group: group.law.plain, ONE_FACTOR.otherwise, EXCHANGEABLE)
INDEPENDENT_GATES = Need(
    lambda group: group.law.independent_gates,
    "the mask law draws the directions of a mask together",
    EXCHANGEABLE,
)
SOME_DROPPED = Need(lambda group: group.law.keep_prob < 1, "keep_prob is 1", MASKED)
SHARED_BY_TOKENS = Need(
    lambda group: group.law.granularity != "token", "every token has a mask of its own", MASKED
)
SHARED_BY_SAMPLES = Need(
    lambda group: group.law.granularity == "step", "every sample has a mask of its own", MASKED
)
DRAWN_IN_PASSES = Need(
    lambda group: group.law.granularity != "step", "the run has one mask a step", MASKED
)
TOKEN_MASKS = Need(
    lambda group: group.law.granularity == "token", "the run has no masks per token", MASKED
)
STEP_MASKS = Need(
    lambda group: group.masks is not None, "no step masks were recorded", LAWS_OWN_GATES
)
TWO_MASKS = Need(lambda group: len(group.masks) > 1, "there are fewer than two masks", STEP_MASKS)
MASKS_KNOWN = Need(
    lambda group: group.law is None or group.masks is not None,
    "the masks of the steps are not recorded",
    LAWS_OWN_GATES,
)

OPTIMIZER = Need(lambda group: group.optimizer, "the optimizer is unknown, or not covered")
ADAMW = Need(lambda group: group.optimizer.name == "AdamW", "the optimizer is not AdamW", OPTIMIZER)
SGD = Need(
    lambda group: group.optimizer.name == "SGD" and not group.optimizer.momentum,
    "the optimizer is not SGD without momentum",
    OPTIMIZER,
)
PLAIN_SGD = Need(
    lambda group: group.optimizer.is_plain_sgd,
    "the optimizer is not SGD without momentum and weight decay",
    OPTIMIZER,
)
NO_DECAY = Need(
    lambda group: group.optimizer.weight_decay == 0, "weight decay moves A at once", OPTIMIZER
)
LEARNING_RATES = Need(
    lambda group: group.learning_rates(group.displacements.steps) is not None,
    "the learning rates were not logged",
    EVERY_STEP,
)

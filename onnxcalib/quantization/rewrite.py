"""Prepare: rewrite a model into the form that the quantization scheme expects, without a change of its outputs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from onnx import ModelProto

from ..config import FLOAT_BITS, QuantizeConfig
from ..errors import ModelError
from ..graph.edit import drop_dead
from ..graph.emit import NEW_TYPES_IR, NEW_TYPES_OPSET, PER_CHANNEL_OPSET, TWO_BITS_IR, TWO_BITS_OPSET
from ..graph.finite import refuse_not_finite
from ..graph.load import multiplies_constants, refuse_scaled, refuse_unsuitable
from ..graph.passes.attributes import spell_attributes
from ..graph.passes.axes import spell_axes
from ..graph.passes.batchnorm import fold_affine, fold_batchnorm
from ..graph.passes.branches import take_branches
from ..graph.passes.duplicates import merge_duplicates
from ..graph.passes.einsum import einsum_as_matmul
from ..graph.passes.fix_inputs import fix_outputs
from ..graph.passes.float16 import widen_float16
from ..graph.passes.fold import fold_constants
from ..graph.passes.gates import fold_hardsigmoid
from ..graph.passes.gemm import flatten_products, normalise_gemm, spread_biases
from ..graph.passes.hardswish import split_hardswish
from ..graph.passes.l2_norms import write_l2_norms
from ..graph.passes.masks import write_masks
from ..graph.passes.normalise import normalise
from ..graph.passes.opset import raise_opset
from ..graph.passes.ort_fusions import split_fusions
from ..graph.passes.pads import fold_pads
from ..graph.passes.pool import globalise_pools
from ..graph.passes.products import products_as_layers
from ..graph.passes.target_shapes import fix_target_shapes
from ..graph.passes.transposed import write_as_convolutions
from ..graph.passes.written_out import write_patterns
from ..targets import Target
from .approximations import write_approximations
from .unchanged import FLOAT16_TOLERANCE, TOLERANCE


@dataclass(frozen=True)
class Rewritten:
    """The rewritten model.

    passes: graph pass -> its number of rewrites. layers: names of those of which the model has
    another operator, or another form.
    """

    model: ModelProto
    passes: dict[str, int]
    layers: frozenset[str]

    @property
    def tolerance(self) -> float:
        """The largest change that ``check_unchanged`` should allow."""
        return FLOAT16_TOLERANCE if self.passes["widen_float16"] else TOLERANCE


def rewrite(
    model: ModelProto, config: QuantizeConfig, keep: Collection[str] = (), target: Target | None = None
) -> Rewritten:
    """Run all graph passes: normalise, raise the opset if it is needed, fold constants, norms. Mutates ``model``.

    keep: nodes that keep their operator, as they stay in float. target: what the file is made for, which may need a
    newer opset and more rewrites. Raises ModelError for a model that cannot be quantized.
    """
    passes = normalise(model)
    refuse_scaled(model)
    passes["split_fusions"] = split_fusions(model)
    passes["raise_opset"] = int(_raise_opset(model, config, target))
    new_types = TWO_BITS_IR if config.least_bits == 2 else NEW_TYPES_IR if _has_new_types(config) else 0
    model.ir_version = max(model.ir_version, new_types)
    for graph_pass in (take_branches, fold_constants):
        passes[graph_pass.__name__] = graph_pass(model)
    recurrent = target is not None and target.requirements.recurrent_weights
    if not multiplies_constants(model):  # no pass makes a layer of it
        refuse_unsuitable(model, recurrent=recurrent)
    for graph_pass in (fix_target_shapes, widen_float16, write_patterns, merge_duplicates, einsum_as_matmul):
        passes[graph_pass.__name__] = graph_pass(model)
    if target is not None:
        passes |= _rewrite_for(model, target)
    made = {products_as_layers.__name__: products_as_layers(model, keep)}
    refuse_not_finite(model)
    passes["fold_batchnorm"] = fold_batchnorm(model)
    passes["fold_affine"] = fold_affine(model)
    taken = frozenset[str]() if target is None else target.requirements.grouped
    # A layer that reads floats gains nothing by an integer kernel.
    if config.activation_bits < FLOAT_BITS and "ConvTranspose" not in taken:
        made[write_as_convolutions.__name__] = write_as_convolutions(model, keep)
    passes |= {name: len(layers) for name, layers in made.items()}
    if "HardSwish" not in taken:
        passes[split_hardswish.__name__] = split_hardswish(model)
    if target is not None and target.rewrites.flat_products:
        passes[flatten_products.__name__] = flatten_products(model)
    for graph_pass in (
        normalise_gemm, spread_biases, fold_hardsigmoid, spell_attributes, fold_pads, spell_axes,
        globalise_pools,
    ):  # fmt: skip
        passes[graph_pass.__name__] = graph_pass(model)
    passes["drop_dead"] += drop_dead(model)
    if config.data.shape:
        fix_outputs(model)
    refuse_unsuitable(model, recurrent=recurrent)
    return Rewritten(model, passes, frozenset(name for layers in made.values() for name in layers))


def least_opset(config: QuantizeConfig, target: Target | None = None) -> int:
    """The least opset of a file of these settings; of a target, that below which it takes none."""
    least = NEW_TYPES_OPSET if _has_new_types(config) else PER_CHANNEL_OPSET
    least = TWO_BITS_OPSET if config.least_bits == 2 else least
    return least if target is None else max(least, target.requirements.opset[0] or 0)


def _raise_opset(model: ModelProto, config: QuantizeConfig, target: Target | None) -> bool:
    """Raise the model to the opset that the target is written at, or as far as it must be; whether it was raised."""
    least = least_opset(config, target)
    wanted = max(least, target.rewrites.opset or 0) if target is not None else least
    try:
        return raise_opset(model, wanted)
    except ModelError:  # of an operator that has no newer form
        if wanted == least:
            raise
    return raise_opset(model, least)


def _has_new_types(config: QuantizeConfig) -> bool:
    """Whether anything may get 4 bits or fewer, or 16 bits, or blocks, which the same opset brought."""
    return config.least_bits <= 4 or config.wide or config.in_blocks


def _rewrite_for(model: ModelProto, target: Target) -> dict[str, int]:
    """What the target needs beyond its rules; returns the number of rewrites of each pass."""
    passes = {write_approximations.__name__: write_approximations(model, target)}
    if target.rewrites.masks is not None:
        passes[write_masks.__name__] = write_masks(model, target.rewrites.masks)
    if target.rewrites.l2_norms:
        passes[write_l2_norms.__name__] = write_l2_norms(model)
    return passes

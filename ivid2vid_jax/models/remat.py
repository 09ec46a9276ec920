"""Rematerialisation: which activations a layer stores for its backward pass.

| name | stored | recomputed |
|---|---|---|
| "none" | all that the backward pass reads | nothing |
| "products" | outputs of convolutions and weight matmuls | norms, activations, attention logits |
| "block" | the layer's input | everything else |
"""

import flax.linen as nn
import jax


def is_weight_product(primitive, *args, **params) -> bool:
    """Checkpoint policy: saves convolutions and matrix products with weights.

    Products with batch dimensions are those of attention, which are recomputed.
    """
    if primitive.name == "dot_general":
        _, batch_dims = params["dimension_numbers"]
        return not any(batch_dims)
    return primitive.name == "conv_general_dilated"


POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": is_weight_product,
    "block": jax.checkpoint_policies.nothing_saveable,
}


def remat_layer(layer: type[nn.Module], name: str) -> type[nn.Module]:
    """Wraps a layer class in the named policy. Raises ValueError for an unknown name."""
    if name not in POLICIES:
        raise ValueError(f"remat={name!r} is unknown; choose {', '.join(POLICIES)}")
    return layer if name == "none" else nn.remat(layer, policy=POLICIES[name])

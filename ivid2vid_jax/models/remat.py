"""What a layer keeps for its backward pass, by name; the rest is computed again.

"none": all that the backward pass reads. "products": the results of convolutions and of matrix products with weights; norms, activations and
attention scores are computed again. "block": the layer's input alone.
"""

import flax.linen as nn
import jax


def is_weight_product(primitive, *args, **params) -> bool:
    """A checkpoint policy: convolutions, and matrix products without batch axes (attention's have them)."""
    if primitive.name == "dot_general":
        return not any(params["dimension_numbers"][1])
    return primitive.name == "conv_general_dilated"


POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "products": is_weight_product,
    "block": jax.checkpoint_policies.nothing_saveable,
}


def remat_layer(layer: type[nn.Module], name: str) -> type[nn.Module]:
    """The layer's class under a policy. Raises ValueError for an unknown one."""
    if name not in POLICIES:
        raise ValueError(f"remat={name!r} is unknown; choose {', '.join(POLICIES)}")
    return layer if name == "none" else nn.remat(layer, policy=POLICIES[name])

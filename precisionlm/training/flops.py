"""FLOPs by formula, checked by hand."""

from precisionlm.config import ModelConfig


def training_flops_per_token(model: ModelConfig, non_embedding: int, sequence_length: int) -> float:
    """FLOPs of forward and backward per trained token.

    6 per weight of the blocks and the head (2 forward, 4 backward; embedding look-ups are free), plus attention's two
    products, 6 * 2 * T * (heads * head size) per layer and token, halved because a causal mask needs half of them.
    Recomputation is not counted.
    """
    head_size = model.head_size or model.width // model.heads
    matrices = non_embedding + model.width * (model.vocab_size or 0)
    attention = 2 * model.layers * sequence_length * model.heads * head_size / 2
    return 6.0 * (matrices + attention)

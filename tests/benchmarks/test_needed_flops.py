"""The FLOPs that MFU counts are those that PyTorch counts where a step does nothing needless, and the architectures have their published sizes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from likelier.logprobs.attention import dense_mask
from likelier.logprobs.scorer import Scorer
from likelier.logprobs.tree import PromptResponse, build_tree
from likelier.models import add_adapter
from likelier.recipe import AdapterSettings

ALONE = [PromptResponse(tuple(range(3, 20)), tuple(range(30, 41)))]
SHARED = [PromptResponse((3, 4, 5, 6, 7), reply) for reply in ((8, 9), (8, 10, 11), (12,), (13, 14, 15, 16))]
SHARED += [PromptResponse((3, 4, 20), (21, 22))]


def counted(config, sequences, method):
    from measures import counting_flops

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if method == "lora":
        model = add_adapter(model, AdapterSettings(), seed=0)
    scorer = Scorer(model, engine="nodes", precision="fp32")
    with torch.no_grad(), counting_flops() as reference:
        scorer.token_logps(sequences)
    with counting_flops() as step:
        torch.cat(scorer.token_logps(sequences)).sum().backward()
    return step(), reference()


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3"])
@pytest.mark.parametrize("sequences", [ALONE, SHARED], ids=["alone", "shared"])
def test_they_are_what_pytorch_counts(name, method, sequences):
    """But for what PyTorch counts otherwise, or Likelier does beyond need: attention in rectangles, its scores made twice by the fused backward pass,
    and the head for each scored token where several leave one position."""
    from gpu_cases import MODELS
    from needed_flops import needed_flops

    config, tree = MODELS[name], build_tree(sequences)
    rectangles = sum((node.stop - node.start) * (node.depth + node.stop - node.start) for node in tree.nodes)
    needed = needed_flops(config, tree, lora_rank=AdapterSettings().rank if method == "lora" else None, seen=rectangles)
    again = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * rectangles
    head = 2 * config.hidden_size * config.vocab_size * (len(tree.targets_E) - len(tree.sources_E.unique()))
    step, reference = counted(config, sequences, method)
    if method == "lora":  # the adapter is switched on here
        by_layer = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64)]
        reference -= 2 * len(tree) * config.num_hidden_layers * AdapterSettings().rank * sum(map(sum, by_layer))
    assert step == needed.step + again + (2 if method == "lora" else 3) * head
    assert reference == needed.reference + head


def test_attention_is_counted_by_what_each_token_sees():
    from needed_flops import seen_pairs

    for sequences in (ALONE, SHARED):
        tree = build_tree(sequences)
        assert seen_pairs(tree) == dense_mask(tree).sum()


def test_the_architectures_are_the_published_ones():
    from gpu_cases import MODELS, count_weights
    from needed_flops import linear_shapes

    published = {"llama-1b": 1_235_814_400, "qwen3-4b": 4_022_468_096, "llama-8b": 8_030_261_248}
    assert {name: count_weights(MODELS[name]) for name in published} == published
    for config in MODELS.values():
        with torch.device("meta"):
            block = AutoModelForCausalLM.from_config(config).model.layers[0]
        made = {
            name.split(".")[-1].removesuffix("_proj"): tuple(layer.weight.shape[::-1]) for name, layer in block.named_modules() if "_proj" in name
        }
        assert made == linear_shapes(config)


def test_the_data_sheet_is_found_by_the_longest_name():
    from rates import datasheet_rate

    assert datasheet_rate("NVIDIA H200") == 989.5e12
    assert datasheet_rate("NVIDIA H200 NVL") == datasheet_rate("NVIDIA H100 NVL") == 835.5e12
    assert datasheet_rate("NVIDIA A100-SXM4-80GB") == 312e12
    assert datasheet_rate("NVIDIA L4") != datasheet_rate("NVIDIA L40S")
    assert datasheet_rate("NVIDIA L400") is None

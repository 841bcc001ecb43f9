"""What bf16 weights cost and save against bf16 autocast over fp32 weights: the figures of decision 5. Usage: python studies/bf16_weights.py [DATA]

One gradient of 8 pairs, cut into batches of 1,024 tokens. The truth is fp32 arithmetic on the same (bf16-representable) weights.
"""

import copy
import sys

import torch
from common import embedded, in_turn, some_pairs
from torch import Tensor, nn

from likelier.logprobs.examples import cut_examples, sequences_of
from likelier.logprobs.scorer import Precision, Scorer


def main() -> None:
    loaded = embedded(torch.bfloat16)
    pairs = some_pairs(sys.argv[1] if len(sys.argv) > 1 else "embedded:support", 8, loaded.tokenizer)
    widened = copy.deepcopy(loaded.model).float()
    weights_of: dict[str, tuple[nn.Module, Precision]] = {"autocast": (widened, "bf16"), "bf16 weights": (loaded.model, "bf16")}

    def gradient(model: nn.Module, precision: Precision) -> tuple[Tensor, Tensor]:
        """(values of all tokens, gradient of all weights)"""
        scorer = Scorer(model, engine="nodes", precision=precision)
        model.zero_grad()
        values = []
        with scorer.unchanged_weights():
            for batch in cut_examples(pairs, 1024):
                logps = scorer.token_logps(sequences_of(batch))
                sum(chosen.sum() - rejected.sum() for chosen, rejected in zip(logps[::2], logps[1::2], strict=True)).backward()
                values += [v.detach() for v in logps]
        return torch.cat(values), torch.cat([p.grad.flatten().float() for p in model.parameters()])

    true_values, true_gradient = gradient(widened, "fp32")
    for name, (model, precision) in weights_of.items():
        values, grads = gradient(model, precision)
        error = (grads - true_gradient).norm() / true_gradient.norm()
        print(f"{name:13} mean error of a token's log-probability {(values - true_values).abs().mean():.3f} nats, of the gradient {error:.1%}")
    for name, seconds in in_turn({name: lambda of=of: gradient(*of) for name, of in weights_of.items()}).items():
        print(f"{name:13} {seconds:.2f} s forward and backward")


if __name__ == "__main__":
    main()

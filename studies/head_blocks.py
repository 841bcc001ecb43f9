"""How many rows of the head's work to do at once: the figures of decision 6. Usage: python studies/head_blocks.py"""

import torch
from common import in_turn

V, D, E = 49_152, 576, 750
ROWS = (16, 85, 341, E)


def main() -> None:
    torch.manual_seed(0)
    hidden_ED, weight_VD = torch.randn(E, D).bfloat16(), (0.05 * torch.randn(V, D)).bfloat16()
    logits_EV = hidden_ED @ weight_VD.T
    slopes_EV = torch.empty_like(logits_EV)

    def blocks(rows: int) -> list[slice]:
        return [slice(start, start + rows) for start in range(0, E, rows)]

    def logits(rows: int) -> None:
        for block in blocks(rows):
            torch.mm(hidden_ED[block], weight_VD.T, out=slopes_EV[block])

    def softmax(rows: int) -> None:
        for block in blocks(rows):
            shifted = logits_EV[block].to(torch.float32, copy=True)
            shifted -= shifted.amax(-1, keepdim=True)
            slopes_EV[block] = shifted.exp_().div_(shifted.sum(-1, keepdim=True)).neg_()

    def log_softmax(rows: int) -> None:
        for block in blocks(rows):
            slopes_EV[block] = logits_EV[block].float().log_softmax(-1).exp_().neg_()

    def logsumexp(rows: int) -> None:
        for block in blocks(rows):
            wide = logits_EV[block].float()
            slopes_EV[block] = wide.sub_(wide.logsumexp(-1, keepdim=True)).exp_().neg_()

    def weight_gradient(rows: int) -> torch.Tensor:
        total = torch.zeros(V, D)
        for block in blocks(rows):
            total += logits_EV[block].T @ hidden_ED[block]
        return total

    print("milliseconds      " + "".join(f"{rows:6} rows" for rows in ROWS))
    for part in (logits, softmax, log_softmax, logsumexp, weight_gradient):
        times = in_turn({str(rows): lambda rows=rows, part=part: part(rows) for rows in ROWS}, rounds=5)
        print(f"{part.__name__:18}" + "".join(f"{1000 * seconds:11.0f}" for seconds in times.values()))


if __name__ == "__main__":
    main()

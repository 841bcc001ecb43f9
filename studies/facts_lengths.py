"""How far the two sides of the shipped `facts` pairs differ in length: the table in docs/data.md. Usage: python studies/facts_lengths.py"""

import numpy as np
from transformers import AutoTokenizer

from likelier.data.formats import read_pairs
from likelier.model_files import EMBEDDED
from likelier.models import locate


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(locate(EMBEDDED))
    texts = [(pair.chosen[0].content, pair.rejected[0].content) for pair in read_pairs("embedded:facts")]
    print("| chosen − rejected | mean | 5% | 25% | 50% | 75% | 95% | chosen longer | equal | rejected longer |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, length in (("tokens", lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])), ("characters", len)):
        difference = np.array([length(chosen) - length(rejected) for chosen, rejected in texts])
        quantiles = " | ".join(f"{q:+.1f}" for q in np.quantile(difference, [0.05, 0.25, 0.5, 0.75, 0.95]))
        signs = f"{(difference > 0).sum()} | {(difference == 0).sum()} | {(difference < 0).sum()}"
        print(f"| {name} | {difference.mean():+.3f} | {quantiles} | {signs} |")


if __name__ == "__main__":
    main()

"""Short passages that a trained model knows how to fill in, for the alignment probe."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

MAX_UNKNOWN_FRACTION = 0.1
"""Of a passage's tokens; above, the tokenizer was made for something else."""
MIN_TOKENS = 24

TEXT = {
    "prose": (
        "The sun rises in the east and sets in the west. In the morning the children go to "
        "school, and in the evening they come home to eat dinner with their mother and father. "
        "Water boils when it is hot and freezes when it is cold. There are seven days in a week "
        "and twelve months in a year. One of the most important things in the life of a person "
        "is to have good friends, because they are there to help you when you need them. The "
        "capital of France is Paris, and the capital of England is London."
    ),
    "code": (
        "import os\n\n\ndef read_lines(path):\n    with open(path) as file:\n        lines = []\n"
        "        for line in file:\n            lines.append(line.strip())\n        return lines\n"
        "\n\nclass Point:\n    def __init__(self, x, y):\n        self.x = x\n        self.y = y\n"
        '\n\nif __name__ == "__main__":\n    for i in range(10):\n        print(i, i + 1)\n'
    ),
}
PROTEINS = {
    # Human ubiquitin, and an antibody's heavy chain of the germline gene IGHV3-23.
    "protein": " ".join(
        "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
    ),
    "antibody": " ".join(
        "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAV"
        "YYCAKDYWGQGTLVTVSS"
    ),
}


def encoded_passages(tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> dict[str, Tensor]:
    """Encodes the passages that the tokenizer has words for, with its own special tokens.

    Text where it can be written in the vocabulary, else proteins, one residue a word.

    Args:
        tokenizer: Of the model.
        max_length: Tokens that are kept of each.

    Returns:
        A passage's name -> its ids [L] int64; empty where none can be written.
    """
    for passages in (TEXT, PROTEINS):
        usable = {}
        for name, text in passages.items():
            ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            num_unknown = ids.count(tokenizer.unk_token_id)
            if len(ids) >= MIN_TOKENS and num_unknown <= MAX_UNKNOWN_FRACTION * len(ids):
                usable[name] = torch.tensor(ids)
        if usable:
            return usable
    return {}

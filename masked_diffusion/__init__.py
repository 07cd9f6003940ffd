"""The domain: masked-diffusion schedules, forward process, samplers, families and checkpoints."""

import logging

# transformers imports torchao wherever it is installed, and that import warns of its GPU libraries
# on every machine without them, in front of whatever the user asked for.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

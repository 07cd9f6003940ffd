"""lm-eval's own command line, with our denoisers known to it as `--model dllm`.

    python -m student_trainer.tasks.lm_eval_cli run --model dllm --model_args pretrained=PATH ...

Releases of lm-eval after 0.4.13 find the model by themselves: `lm-eval run --model dllm ...`.
"""

import lm_eval.models  # noqa: F401  its own models, which a first registration would shut out
from lm_eval.__main__ import cli_evaluate

from student_trainer.tasks import denoiser_lm  # noqa: F401  registers dllm


def main() -> None:
    """Hands the command line to lm-eval."""
    cli_evaluate()


if __name__ == "__main__":
    main()

"""Programming problems in the formats of HumanEval and MBPP, and the programs that test answers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

MBPP_SHOWN_IDS = (2, 3, 4)
"""Problems that are shown solved, of the ten that the authors set aside for it."""
MBPP_TEST_IDS = range(11, 511)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a denoiser is asked, and how its answer becomes a program."""

    task_id: str
    prompt: str
    """For a denoiser of plain text."""
    message: str
    """For one that chats."""
    answer_begin: str
    """What its answer to the message begins with."""
    head: str
    """Source before the answer."""
    tests: str
    """Source after it."""

    def program(self, answer: str) -> str:
        """Puts the answer into the program that tests it: it passes if that ends well."""
        return f"{self.head}{answer}\n{self.tests}\n"


@dataclass(frozen=True, kw_only=True)
class CodeTask:
    """A set of problems: where it is, and how it is read and asked."""

    hub_id: str
    hub_config: str | None
    hub_splits: tuple[str, ...]
    """All of them are read; a local file holds their rows together."""
    read: Callable[[Sequence[Row], int], list[Problem]]
    """Makes the problems of rows, with so many shown solved."""
    until: tuple[str, ...]
    """Texts at which an answer to the prompt ends."""
    max_new_tokens: int
    default_num_fewshot: int


def read_humaneval(rows: Sequence[Row], num_fewshot: int) -> list[Problem]:
    """Reads rows with task_id, prompt, test and entry_point.

    Raises:
        ValueError: a field is missing, or solved examples are asked for: there are none.

    Source: Chen et al., arXiv:2107.03374; the chat's words are lm-eval's humaneval_instruct.
    """
    if num_fewshot:
        raise ValueError(f"num_fewshot must be 0 with humaneval, got {num_fewshot}")
    _require_fields(rows, ("task_id", "prompt", "test", "entry_point"))
    return [
        Problem(
            task_id=str(row["task_id"]),
            prompt=row["prompt"],
            message="Write a solution to the following problem and make sure that it passes the "
            f"tests:\n```python\n{row['prompt']}\n```\n",
            answer_begin=f"Here is the completed function:\n```python\n{row['prompt']}\n",
            head=row["prompt"],
            tests=f"{row['test']}\ncheck({row['entry_point']})",
        )
        for row in rows
    ]


def read_mbpp(rows: Sequence[Row], num_fewshot: int) -> list[Problem]:
    """Reads rows with task_id, text (or prompt), code, test_list and, if there is, what tests need.

    The authors' split holds: problems 11 to 510 are asked, after 2, 3 and 4, solved.

    Raises:
        ValueError: a field or problem is missing, or more examples are asked for than there are.

    Source: Austin et al., arXiv:2108.07732; the words are theirs, as in lm-eval's mbpp.
    """
    _require_fields(rows, ("task_id", "code", "test_list"))
    by_id = {int(row["task_id"]): row for row in rows}
    shown_ids = MBPP_SHOWN_IDS[:num_fewshot]
    missing = [task_id for task_id in shown_ids if task_id not in by_id]
    if missing or num_fewshot > len(MBPP_SHOWN_IDS):
        raise ValueError(
            f"num_fewshot must be at most {len(MBPP_SHOWN_IDS)}, and the data must hold problems "
            f"{MBPP_SHOWN_IDS} to show; got {num_fewshot}, and {missing or 'none'} are missing"
        )
    shown = "".join(
        f"{_mbpp_question(by_id[i])}\n[BEGIN]\n{by_id[i]['code']}\n[DONE]\n\n" for i in shown_ids
    )
    asked = [by_id[task_id] for task_id in MBPP_TEST_IDS if task_id in by_id]
    if not asked:
        raise ValueError(
            f"no problem of the test split: its task_id are {MBPP_TEST_IDS.start} to "
            f"{MBPP_TEST_IDS.stop - 1}, those given {min(by_id)} to {max(by_id)}"
        )
    return [
        Problem(
            task_id=str(row["task_id"]),
            prompt=f"{shown}{_mbpp_question(row)}\n[BEGIN]\n",
            message=_mbpp_question(row),
            answer_begin="```python\n",
            head="",
            tests="\n".join((*_mbpp_needs(row), *row["test_list"])),
        )
        for row in asked
    ]


def _mbpp_question(row: Row) -> str:
    text = row.get("text") or row["prompt"]
    tests = "\n".join(row["test_list"][:3])
    return (
        f"You are an expert Python programmer, and here is your task: {text} "
        f"Your code should pass these tests:\n\n{tests}"
    )


def _mbpp_needs(row: Row) -> Iterable[str]:
    yield row.get("test_setup_code") or ""
    yield from row.get("test_imports") or ()


def _require_fields(rows: Sequence[Row], names: Sequence[str]) -> None:
    if not rows:
        raise ValueError("there are no problems in the data")
    for number, row in enumerate(rows, start=1):
        missing = [name for name in names if name not in row]
        if missing:
            raise ValueError(
                f"row {number} of the problems has no field {missing[0]!r}; needed are "
                f"{', '.join(names)}"
            )


_HUMANEVAL_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

CODE_TASKS: Mapping[str, CodeTask] = {
    "humaneval": CodeTask(
        hub_id="openai/openai_humaneval",
        hub_config=None,
        hub_splits=("test",),
        read=read_humaneval,
        until=_HUMANEVAL_ENDS,
        max_new_tokens=512,
        default_num_fewshot=0,
    ),
    "humaneval_plus": CodeTask(
        hub_id="evalplus/humanevalplus",
        hub_config=None,
        hub_splits=("test",),
        read=read_humaneval,
        until=_HUMANEVAL_ENDS,
        max_new_tokens=512,
        default_num_fewshot=0,
    ),
    "mbpp": CodeTask(
        hub_id="google-research-datasets/mbpp",
        hub_config="full",
        hub_splits=("prompt", "test"),
        read=read_mbpp,
        until=("[DONE]",),
        max_new_tokens=256,
        default_num_fewshot=3,
    ),
}
"""Tasks whose answers are programs. They run in a sandbox, and only if that is confirmed."""

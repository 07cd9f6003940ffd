"""Two small tasks of our own in lm-eval's YAML, with their data beside them."""

import json
from pathlib import Path
from typing import Any

CHOICE_ROWS: list[dict[str, Any]] = [
    {"question": "for index in", "choices": [" range", " queue", " self"], "answer": 0},
    {"question": "class Point:\n    def", "choices": [" read", " print"], "answer": 1},
    {"question": "import", "choices": [" os", " path", " x"], "answer": 2},
    {"question": "while queue:\n    item =", "choices": [" queue", " None"], "answer": 0},
]
WRITE_ROWS = [{"question": "def add(left,", "answer": "a"}, {"question": "print(", "answer": "b"}]
MAX_GEN_TOKS = 6

_CHOICE = """
task: our_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""

_WRITE = """
task: our_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/write.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: {max_gen_toks}, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""

_LOST = """
task: our_lost
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/nowhere.jsonl}}, cache_dir: {folder}/cache}}
test_split: test
output_type: generate_until
doc_to_text: ""
doc_to_target: ""
"""

_UNSAFE = """
task: our_unsafe
dataset_path: json
unsafe_code: true
output_type: generate_until
doc_to_text: ""
doc_to_target: !function missing.function
"""


def write(folder: Path) -> Path:
    """Writes the tasks into a folder of their own; returns it."""
    for name, rows in (("choice", CHOICE_ROWS), ("write", WRITE_ROWS)):
        text = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, text in (("choice", _CHOICE), ("writing", _WRITE), ("lost", _LOST)):
        filled = text.format(folder=folder, max_gen_toks=MAX_GEN_TOKS)
        (tasks / f"{name}.yaml").write_text(filled, encoding="utf-8")
    (tasks / "unsafe.yaml").write_text(_UNSAFE, encoding="utf-8")
    return tasks

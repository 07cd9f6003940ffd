"""Configuration of an evaluation; the text under a field is its manual.

Every field is a flag of `distill evaluate` of the same name.
"""

from dataclasses import dataclass, field

from student_trainer.evaluation.model_spec import DtypeName
from student_trainer.evaluation.tasks_config import TasksConfig
from student_trainer.row_keys import HubSelection, RowKeys


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig(TasksConfig):
    """What is evaluated, on what, and how."""

    model: list[str] = field(default_factory=list)
    """A model to evaluate: [NAME=]PATH_OR_ID[@HUB_REVISION][,key=value...] with the keys
    mask_token_id, alignment, block_length, adapter, quantization, dtype. May be repeated."""
    teacher: str | None = None
    """The teacher, written likewise: the models' agreement with it is measured, and it is evaluated
    as they are."""
    data_path: str = ""
    """Held-out files, folders or hub ids, separated by commas; formats as data.train_path of
    training. Not needed where --tasks are all that is asked for."""
    output_dir: str = ""
    """Folder for evaluation.json, table.txt, the plots and index.html."""
    evaluations: list[str] = field(default_factory=list)
    """Which, separated by commas: likelihood, agreement, samples, infilling, all on --data_path,
    and tasks. Default: all that are given what they need and apply, and what does not apply is
    listed with its reason; one that is asked for and does not apply is an error."""
    text_keys: list[str] = field(default_factory=lambda: ["text"])
    """Keys of a row's text, as data.text_keys of training."""
    prompt_keys: list[str] = field(default_factory=list)
    """Keys of the parts of a row's prompt, with --answer_keys, as data.prompt_keys of training. A
    prompt is given and never measured."""
    answer_keys: list[str] = field(default_factory=list)
    """Keys of the answer, of which the first present is taken."""
    messages_key: str = ""
    """Key of a row's conversation, such as messages, as data.messages_key of training: answers of
    the assistant are measured, each given what came before."""
    subset: str | None = None
    """Configuration of a hub's dataset; None = the only one."""
    split: str = "test"
    """Split of a hub's or a saved dataset."""
    data_revision: str | None = None
    """Branch, tag or commit of a hub's dataset; None = the newest."""
    max_seq_len: int = 256
    """Tokens of a held-out sequence; longer documents are cut into several."""
    min_chunk_tokens: int = 16
    """A document's last piece is dropped when it has fewer tokens."""
    num_sequences: int = 256
    """Held-out sequences for likelihood and agreement; fewer only where there are fewer."""
    masks_per_sequence: int = 4
    """Fixed masks of each sequence, spread evenly over the share of masked tokens."""
    num_bins: int = 8
    """Ranges of the share of masked tokens that agreement is told by."""
    steps: list[int] = field(default_factory=lambda: [8, 32, 128])
    """Numbers of denoising steps of the steps-against-quality curve, separated by commas."""
    samplers: list[str] = field(default_factory=list)
    """Samplers of the curve, separated by commas: ALGORITHM[:key=value...] with the fields of
    SamplerConfig, such as low_confidence:temperature=0.8:block_length=32. Default: ancestral and
    low_confidence, multinomial for uniform noise, low_confidence for block-causal models."""
    temperature: float = 1.0
    """Of the curve's samplers that name none. With 0 most samplers write one text again and
    again."""
    num_samples: int = 64
    """Sequences written for each point of the curve."""
    gen_length: int = 128
    """Tokens of a sample, what is given among them."""
    prompt_tokens: int = 0
    """Leading tokens of held-out text given to each sample; 0 = unconditional. Rows with a prompt
    of their own are always given that."""
    keep_after_eos: bool = False
    """Judge what follows a sample's first end-of-sequence token too."""
    scorer: list[str] = field(default_factory=list)
    """Judge of the samples: ar:MODEL is a causal language model of transformers, masked:MODEL a
    denoiser; MODEL as for --model. May be repeated."""
    infilling_spans: list[int] = field(default_factory=lambda: [1, 4, 16])
    """Lengths in tokens of the spans that are masked in held-out text and written again."""
    num_infills: int = 64
    """Spans of each length."""
    infilling_sampler: str | None = None
    """As one of --samplers; default: low_confidence, and multinomial for uniform noise. At
    temperature 0 where it names none."""
    infilling_steps: int = 0
    """Denoising steps; 0 = as many as the span has tokens."""
    seed: int = 1234
    """Keys every choice of sequences, masks and spans, and every draw of the samplers."""
    batch_size: int = 16
    """Sequences of one forward."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU if there is one."""
    dtype: DtypeName = "auto"
    """Number format of the weights of models that name none; auto keeps the checkpoint's."""
    trust_remote_code: bool = False
    """Run code that checkpoints bring."""
    skip_self_test: bool = False
    """Evaluate even if attention is not bidirectional or padding matters."""
    num_threads: int = 0
    """CPU threads of the forwards; 0 = torch's default."""

    def __post_init__(self) -> None:
        # super() does not work in a dataclass with slots.
        TasksConfig.__post_init__(self)
        self.keys  # noqa: B018  checks itself
        for name in ("model", "output_dir"):
            _require(bool(getattr(self, name)), name, getattr(self, name), "given")
        for name in (
            *("num_sequences", "num_samples", "num_infills"),
            *("gen_length", "max_seq_len"),
        ):
            _require(getattr(self, name) >= 2, name, getattr(self, name), "at least 2")  # noqa: PLR2004
        for name in ("masks_per_sequence", "num_bins", "batch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("prompt_tokens", "infilling_steps", "num_threads", "temperature"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("steps", "infilling_spans"):
            numbers = getattr(self, name)
            _require(
                bool(numbers) and min(numbers) >= 1 and len(set(numbers)) == len(numbers),
                name,
                numbers,
                "different numbers of at least 1",
            )
        for name in ("samplers", "scorer", "evaluations"):
            texts = getattr(self, name)
            _require(len(set(texts)) == len(texts), name, texts, "different from each other")
        _require(
            self.gen_length <= self.max_seq_len,
            "gen_length",
            self.gen_length,
            f"at most max_seq_len ({self.max_seq_len}): samples are compared with held-out text of "
            "their length",
        )
        _require(
            self.prompt_tokens < self.gen_length,
            "prompt_tokens",
            self.prompt_tokens,
            f"below gen_length ({self.gen_length})",
        )

    @property
    def keys(self) -> RowKeys:
        """Where in a held-out row its texts are."""
        return RowKeys(
            text=tuple(self.text_keys),
            prompt=tuple(self.prompt_keys),
            answer=tuple(self.answer_keys),
            messages=self.messages_key,
        )

    @property
    def selection(self) -> HubSelection:
        """Which part of a dataset is held out."""
        return HubSelection(subset=self.subset, split=self.split, revision=self.data_revision)


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"--{name} must be {allowed}, got {value!r}")

"""Agreement of every model with the teacher, by share of masked tokens."""

from dataclasses import asdict

from masked_diffusion.families import Denoiser
from student_trainer.evaluation import figures
from student_trainer.evaluation.agreement import KlBin, KlToTeacher, check_comparable, kl_to_teacher
from student_trainer.evaluation.evaluation import Drawing, Evaluation, Section
from student_trainer.evaluation.subjects import Setting, Subject
from student_trainer.report_text import Table


class AgreementEvaluation(Evaluation):
    """KL(teacher, model) and top-1 agreement on the states of the likelihood."""

    title = "Agreement with the teacher"
    measures_teacher = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._measured: dict[str, KlToTeacher] = {}

    def refusal(self, subject: Subject) -> str | None:
        if self.setting.teacher is None:
            return "no --teacher is given"
        try:
            check_comparable(self.setting.teacher.info, subject.info)
        except ValueError as error:
            return str(error)
        return None

    def measure(self, subject: Subject, denoiser: Denoiser, *, teacher: Denoiser | None) -> None:
        assert teacher is not None
        self._measured[subject.name] = kl_to_teacher(
            teacher,
            denoiser,
            self.setting.held_out(subject).states,
            batch_size=self.setting.config.batch_size,
            num_bins=self.setting.config.num_bins,
        )

    def conclude(self) -> Section:
        return Section(
            title=self.title,
            values={
                "num_bins": self.setting.config.num_bins,
                "models": [
                    {"model": name, **asdict(found)} for name, found in self._measured.items()
                ],
            },
            tables=[self._table()],
            drawings=[
                Drawing(
                    name="agreement",
                    title=self.title,
                    caption="By share of masked tokens, on the held-out sequences and masks of "
                    "the likelihood. Bars are 95 % intervals over sequences.",
                    figure=figures.agreement(self._measured, names=self.setting.names),
                )
            ],
            reading=[
                "KL(teacher, model) is 0 where both give the same distribution; it is what "
                "distillation trains for and no quality by itself: a model may be close to a "
                "teacher that is wrong.",
                "Positions of one sequence are alike, so intervals take sequences as the "
                "independent draws.",
            ],
        )

    def _table(self) -> Table:
        rows: dict[tuple[float, float], list[str]] = {}
        for found in self._measured.values():
            for one in found.bins:
                rows.setdefault((one.t_low, one.t_high), []).append(_cell(one))
        lines = [[f"{low:.1%} to {high:.1%}", *cells] for (low, high), cells in rows.items()]
        return Table(
            title="KL(teacher, model) in nats a position (top-1 agreement)",
            header=["masked", *self._measured],
            rows=[*lines, ["all", *(_cell(found.overall) for found in self._measured.values())]],
            note="± is half of a 95 % interval over sequences.",
        )


def _cell(one: KlBin) -> str:
    kl, top1 = f"{one.kl_nats:.4f}", f"{one.top1_agreement:.1%}"
    if one.kl_ci95 is None or one.top1_ci95 is None:
        return f"{kl} ({top1})"
    return f"{kl} ± {one.kl_ci95:.4f} ({top1} ± {one.top1_ci95:.1%})"

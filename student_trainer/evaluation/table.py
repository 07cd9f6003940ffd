"""The table of evaluations: a new kind is a class and a line here."""

from collections.abc import Mapping

from student_trainer.evaluation.agreement_evaluation import AgreementEvaluation
from student_trainer.evaluation.evaluation import Evaluation
from student_trainer.evaluation.infilling_evaluation import InfillingEvaluation
from student_trainer.evaluation.likelihood_evaluation import LikelihoodEvaluation
from student_trainer.evaluation.samples_evaluation import SamplesEvaluation
from student_trainer.evaluation.tasks_evaluation import TasksEvaluation

EVALUATIONS: Mapping[str, type[Evaluation]] = {
    "likelihood": LikelihoodEvaluation,
    "agreement": AgreementEvaluation,
    "samples": SamplesEvaluation,
    "infilling": InfillingEvaluation,
    "tasks": TasksEvaluation,
}
"""In the order of the report."""

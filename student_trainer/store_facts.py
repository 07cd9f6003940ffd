"""Which states a run learns from, as facts that a resume compares, whoever answers for them."""

from student_trainer.config import Config
from student_trainer.run_facts import Value, state_facts
from student_trainer.store.identity import DATASET_PLAN, RUN_PLAN, StoreIdentity

STATE_PLAN = "state_plan"

_DECIDING = ("plan.", "sampler.")
"""Of an identity's facts. The teacher's revision is compared anyway, and an encoding may change."""


def store_facts(config: Config, identity: StoreIdentity | None) -> dict[str, Value]:
    """The facts of a run with a teacher.

    A store of a run's own states has those of the live run, since it was compared with the
    configuration. A store of a data set decides the states itself.

    Args:
        identity: of the store; None with a live teacher.
    """
    if identity is None or identity.kind != DATASET_PLAN:
        return {STATE_PLAN: RUN_PLAN} | state_facts(config)
    state_source = identity.plan.get("state_source")
    facts: dict[str, Value] = {STATE_PLAN: DATASET_PLAN, "distill.state_source": state_source}
    for name, value in identity.facts().items():
        if name.startswith(_DECIDING):
            assert value is None or isinstance(value, int | float | str)
            facts[f"store.{name}"] = value
    if state_source == "trajectory":
        # Drawn from what is stored.
        facts["distill.states_per_trajectory"] = config.distill.states_per_trajectory
    return facts

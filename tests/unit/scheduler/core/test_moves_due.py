"""Adapters move after the steps have been planned."""

from adex_proto.plan import Stage
from adex_scheduler.core.events import MovesDue
from adex_scheduler.core.instructions import SendPlan
from adex_scheduler.testing.desk import Desk


def test_a_step_is_planned_first_and_several_facts_lead_to_one_decision_about_moves() -> None:
    desk = Desk()
    for name in ("a", "b"):
        desk.arrive(desk.publish(name))
    desk.arrive(new=9)
    for _ in range(2):
        assert desk.decide(desk.worker.run_command(0)) == []
    planned, *_ = desk.decide(desk.worker.run_plan())
    assert isinstance(planned, SendPlan)
    assert desk.sent(Stage) == []
    desk.decide(MovesDue())
    assert desk.sent(Stage) == [Stage("digest-a"), Stage("digest-b")]
    assert desk.decide(MovesDue()) == []
    desk.settle()
    assert len(desk.finish) == 3

"""``dense``: no reduction. The baseline every speed-up is over."""

from __future__ import annotations

from lifedeploy.model.reducers.base import Reducer
from lifedeploy.schedule import Schedule


class DenseReducer(Reducer):
    """Keeps everything, whatever the schedule says."""

    sorts = 0

    def at(self, schedule: Schedule) -> Reducer:
        return self

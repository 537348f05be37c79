"""``dense``: no reduction. The baseline every speed-up is over."""

from __future__ import annotations

from lifedeploy.model.reducers.base import Reducer


class DenseReducer(Reducer):
    """Keeps everything."""

    method = "dense"

"""Fixtures of other folders that these tests need too."""

from tests.engines.tensorrt.conftest import rtx  # noqa: F401
from tests.model.conftest import family, one_thread  # noqa: F401

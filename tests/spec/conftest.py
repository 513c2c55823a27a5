import pytest

from lrsearch.errors import ConfigError
from lrsearch.spec.config import StudyConfig
from lrsearch.spec.parse import parse


@pytest.fixture
def refusal():
    """Study data → the error it is refused with."""

    def refuse(data):
        with pytest.raises(ConfigError) as caught:
            parse(StudyConfig, data, "study.yaml")
        return caught.value

    return refuse

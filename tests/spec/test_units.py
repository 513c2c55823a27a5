import pytest

from lrsearch.errors import ConfigError
from lrsearch.spec.units import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("128 KiB", 131072), ("5 MB", 5_000_000), ("1.5MiB", 1_572_864), ("4096 B", 4096), (" 2 gb ", 2 * 10**9), ("0.5 kB", 500)],
)
def test_sizes_are_read_into_bytes(text, size):
    assert parse_bytes(text, "here") == size


@pytest.mark.parametrize("text", ["", "5", "MB", "5 MBit", "-5 MB", "5 M B", "1e3 kB", "5,5 MB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match=r"^here: must be a number and one of B, kB, MB, GB, KiB, MiB, GiB; got ") as caught:
        parse_bytes(text, "here")
    assert caught.value.remedy == "For example 128 KiB, or 5 MB."

"""Blobs in a bucket of S3, of moto's server on loopback."""

import io

import pytest
from jobs import searching

import lrsearch
from lrsearch.errors import StudyError
from lrsearch.profile import build as profiles
from lrsearch.spec.blobs import LocalStore
from lrsearch.study.artifacts import SharedBlobs

pytestmark = pytest.mark.machines


@pytest.fixture
def bucket(monkeypatch):
    """The name of an empty bucket, which the environment leads to."""
    boto3 = pytest.importorskip("boto3", reason="needs the driver: pip install 'lrsearch[s3]'")
    servers = pytest.importorskip("moto.server", reason="needs moto's server: pip install 'moto[s3,server]'")
    server = servers.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="studies")
    yield "studies"
    server.stop()


def keys(bucket):
    import boto3

    return [found["Key"] for found in boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", ())]


def test_blobs_are_below_the_prefix_and_found_by_others(bucket, tmp_path):
    a, b = (SharedBlobs(LocalStore(tmp_path / name), f"s3://{bucket}/teams/mine", "a study") for name in "ab")
    whole = SharedBlobs(LocalStore(tmp_path / "c"), f"s3://{bucket}", "a study")
    a.put("paused/0003.pt", b"one")
    assert (b.get("paused/0003.pt"), b.exists("paused/0003.pt"), b.list("paused/")) == (b"one", True, ["paused/0003.pt"])
    assert b.local("paused/0003.pt").read_bytes() == b"one"
    assert whole.list("paused/") == []
    assert all(key.startswith("teams/mine/a_study.paused--0003.pt.") for key in keys(bucket))
    a.put("paused/0003.pt", b"two")
    assert (b.get("paused/0003.pt"), len(keys(bucket))) == (b"two", 2)
    b.remove("paused/0003.pt")
    assert (a.get("paused/0003.pt"), keys(bucket)) == (None, [])


def test_damage_in_a_bucket_counts_as_not_there(bucket, tmp_path):
    import boto3

    blobs = SharedBlobs(LocalStore(tmp_path), f"s3://{bucket}", "x")
    blobs.put("losses/0001-0.f16", b"whole")
    content = next(key for key in keys(bucket) if not key.endswith(".sha256"))
    boto3.client("s3").upload_fileobj(io.BytesIO(b"part"), bucket, content)
    assert blobs.get("losses/0001-0.f16") is None


def test_a_bucket_that_is_not_there_is_one_line(bucket, tmp_path):
    with pytest.raises(StudyError, match="must be a bucket that can be reached"):
        SharedBlobs(LocalStore(tmp_path), "s3://nowhere", "x")


def test_a_second_machine_has_all_from_the_bucket(bucket, shared, calls, tmp_path, monkeypatch):
    job = {**searching(shared, trials=1, control_points=1), "artifacts": f"s3://{bucket}/blobs"}
    first = lrsearch.search(**{**job, "out": tmp_path / "a"})
    made = len(calls)
    monkeypatch.setenv("LRSEARCH_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(profiles, "sweep", None)  # nothing is fitted
    second = lrsearch.search(**{**job, "out": tmp_path / "b"})
    assert len(calls) == made
    assert second.front.equals(first.front)
    assert all((tmp_path / "b" / model / "plan.json").exists() for model in second.front.model)

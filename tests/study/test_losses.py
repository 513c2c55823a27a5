from types import SimpleNamespace

import numpy as np
import pytest

from lrsearch.search.noise import own_luck, paired_errors
from lrsearch.study.losses import LARGEST, Losses
from lrsearch.study.study_folder import StudyFolder


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    shared = rng.exponential(size=400)
    return np.stack([shared + 0.1 * rng.standard_normal(400) for _ in range(3)])


def test_the_error_of_a_difference_is_that_of_its_mean(rows):
    direct = [[(a - b).std(ddof=1) / 20 for b in rows] for a in rows]
    assert np.allclose(paired_errors(rows), direct, atol=1e-9)
    apart = np.sqrt(2) * rows.std(1, ddof=1).mean() / 20
    assert paired_errors(rows).max() < 0.25 * apart


def test_one_example_and_one_plan_have_no_error():
    assert not paired_errors([[1.0], [2.0]]).any()
    assert paired_errors([[1.0, 5.0, 2.0]]).tolist() == [[0.0]]


def test_files_give_the_error_of_what_was_lost(rows, tmp_path):
    losses = Losses(StudyFolder(tmp_path))
    for number, row in enumerate(rows):
        losses.save(number, 1, row)
    assert np.allclose(losses.noise([2, 0, 1], 1), paired_errors(rows[[2, 0, 1]]), rtol=1e-2)
    assert sum(p.stat().st_size for p in (tmp_path / "losses").iterdir()) == 2 * rows.size


def test_what_is_not_known_excuses_nothing(rows, tmp_path):
    losses = Losses(StudyFolder(tmp_path))
    assert not losses.noise([0, 1], 0).any()
    losses.save(0, 0, rows[0])
    losses.save(2, 0, rows[2])
    noise = losses.noise([0, 1, 2], 0)
    assert noise[0, 2] == noise[2, 0] > 0
    assert not noise[1].any()


def test_the_error_of_a_change_is_that_of_the_same_examples(rows, tmp_path):
    losses = Losses(StudyFolder(tmp_path))
    losses.save(4, 0, rows[0])
    assert losses.error_of_change(4, 2) == 0
    losses.save(4, 2, rows[1])
    assert losses.error_of_change(4, 2) == pytest.approx(paired_errors(rows)[0, 1], rel=1e-2)


def test_losses_too_large_for_16_bits_stay_finite(tmp_path):
    losses = Losses(StudyFolder(tmp_path))
    losses.save(0, 0, [1e9, 0.0])
    losses.save(1, 0, [0.0, 0.0])
    assert losses.noise([0, 1], 0)[0, 1] == pytest.approx(LARGEST / 2)


def test_what_the_images_do_to_all_plans_alike_is_no_luck():
    rng = np.random.default_rng(0)
    shared, level = rng.exponential(size=4000), np.geomspace(0.01, 1, 30)[:, None]
    assert own_luck(level * shared) == pytest.approx(0, abs=1e-9)
    own = rng.exponential(size=(30, 4000))
    luck = np.sqrt(own_luck(level * shared * own).diagonal())
    shown = np.log((shared * own).mean(1) / shared.mean()).std()
    assert np.median(luck) == pytest.approx(shown, rel=0.3)


def test_too_few_plans_tell_no_luck():
    assert own_luck([[1.0, 2.0]]) == pytest.approx(0)
    assert own_luck([[1.0, 2.0], [2.0, 1.0], [0.0, 9.0]]).shape == (3, 3)


def test_a_study_of_the_metric_has_no_losses_to_learn_the_kl_from(tmp_path):
    losses = Losses(StudyFolder(tmp_path))
    assert losses.before_training(("metric", "params")) is None
    losses.save(0, 0, [1.0, 2.0])
    assert losses.before_training(("divergence", "params"))(0).tolist() == [1.0, 2.0]
    assert losses.before_training(("divergence", "params"))(1) is None



@pytest.fixture
def shared(tmp_path):
    """A study whose trials are in a storage that machines share; they have no artifacts."""
    for name in "ab":
        folder = StudyFolder(tmp_path / name)
        folder.path.mkdir()
        folder.save(folder.pointer, {"url": "postgresql://host/studies", "study": "x"})
    return [Losses(StudyFolder(tmp_path / name)) for name in "ab"]


def trial(number, attributes):
    return SimpleNamespace(number=number, user_attrs=attributes)


@pytest.mark.parametrize("part", [48_000, 16], ids=["one attribute", "several"])
def test_machines_that_share_trials_alone_have_their_losses_from_them(shared, rows, part, monkeypatch):
    monkeypatch.setattr("lrsearch.study.losses.PART", part)
    one, other = shared
    for number in (0, 1):
        one.save(number, 0, rows[number])
    one.save(1, 2, rows[2])
    trials = [trial(0, one.telling(0, 0)), trial(1, one.telling(1, 0)), trial(7, {"continues": 1, "rung": 2, **one.telling(1, 2)})]
    assert not other.noise([0, 1], 0).any()
    again = Losses(one.folder)
    assert not again.noise([0, 1], 0).any()  # what one has alone is not decided by
    assert one.error_of_change(1, 2) == pytest.approx(paired_errors(rows[[1, 2]])[0, 1], rel=1e-2)  # but of what it has just done
    for losses in (again, other):
        losses.hear(trials)
        assert np.allclose(losses.noise([0, 1], 0), paired_errors(rows[:2]), rtol=1e-2)
        assert losses.error_of_change(1, 2) == pytest.approx(paired_errors(rows[[1, 2]])[0, 1], rel=1e-2)
    trials[0].user_attrs.update({"losses/0": "?"})
    last = Losses(other.folder)
    last.hear(trials)
    assert last.of(0, 0) is None


def test_trials_say_no_losses_where_blobs_do(rows, tmp_path):
    losses = Losses(StudyFolder(tmp_path))
    losses.save(0, 0, rows[0])
    assert losses.telling(0, 0) == {}
    losses.hear([trial(0, losses.blob(0, 0))])  # as those of a study that came back
    (tmp_path / losses.folder.losses_name(0, 0)).unlink()
    assert Losses(StudyFolder(tmp_path), _told=losses._told).of(0, 0) is not None

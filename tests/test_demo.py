"""The demo's data, scores and table; the whole of it at a tiny size is in test_cli.py."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate
from sklearn.metrics import roc_auc_score
from torch import nn

from sampla import Categorical, Predictive
from sampla.apps.demo import data as demo_data
from sampla.apps.demo.data import ImageSet, digits, mnist, noisy, pure_noise, read_idx, rotated
from sampla.apps.demo.evaluate import (
    EM_WIDTH,
    METHODS,
    MONTE_CARLO,
    NETWORK,
    PROBIT,
    Answers,
    Evaluation,
    Scores,
    SetScores,
    scores,
)
from sampla.apps.demo.evaluate import _aurocs as aurocs
from sampla.apps.demo.networks import count_parameters, network_for
from sampla.apps.demo.table import as_text, table, verdicts
from sampla.apps.demo.training import Recipe, train


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist_root(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, count in (("train", 30), ("t10k", 20)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28))),
            ("labels-idx1", rng.integers(0, 10, count)),
        ):
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


def predictive(count=40, classes=3, samples=5):
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.randn(count, classes, generator=generator)
    deviations = torch.randn(samples, count, classes, generator=generator)
    return Predictive(mean, deviations, Categorical())


def answers(pred):
    probit = replace(pred, method="probit").probs
    at_em = Predictive(pred.mean, pred.deviations, pred.likelihood).probs
    return Answers({NETWORK: pred.mean.softmax(-1), MONTE_CARLO: pred.probs, PROBIT: probit, EM_WIDTH: at_em}, pred)


def evaluation(ours_nll):
    def one(kind, strength, theirs, ours):
        values = {NETWORK: theirs, MONTE_CARLO: ours, PROBIT: ours, EM_WIDTH: ours}
        return SetScores(
            kind, strength, {m: Scores(0.9, v, 0.1, None if m == PROBIT else v) for m, v in values.items()}
        )

    auroc = {"turned": dict(zip(METHODS, (0.8, 0.8, 0.8, 0.8), strict=True))}
    turned = [one("rotated", 15.0, 1.0, ours_nll), one("rotated", 30.0, 1.0, 0.5)]
    return Evaluation(
        one("clean", 0.0, 1.0, ours_nll), turned, [one("noisy", 0.1, 1.0, 0.5)], auroc, answers(predictive())
    )


class TestIdx:
    @pytest.mark.parametrize("shape", [(4,), (3, 2, 5)])
    @pytest.mark.parametrize("packed", [True, False])
    def test_reads_what_was_written(self, tmp_path, shape, packed):
        array = np.arange(np.prod(shape)).reshape(shape)
        path = tmp_path / ("a.gz" if packed else "a")
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
        assert np.array_equal(read_idx(path), array)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (idx(np.zeros((4, 2)))[:-1], "expected 8 bytes of data for shape .4, 2. .*, got 7"),
            (idx(np.zeros((4, 2))) + b"x", "got 9"),
            (idx(np.zeros((4, 2)))[:9], "a header of 12 bytes"),
            (b"\x89PNG and more", "magic number"),
            (b"", "got magic number nothing"),
            (idx(np.zeros((0, 2))), "damaged"),
        ],
    )
    def test_says_what_is_wrong(self, tmp_path, content, message):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_idx(tmp_path / "a")

    @pytest.mark.parametrize("cut", [5, 30])
    def test_a_gzip_file_cut_short_is_damaged(self, tmp_path, cut):
        (tmp_path / "a.gz").write_bytes(gzip.compress(idx(np.arange(100)))[:cut])
        with pytest.raises(ValueError, match=r"could not read .*damaged or was cut short"):
            read_idx(tmp_path / "a.gz")


class TestMnist:
    def test_loads_from_the_folder_or_the_one_above(self, mnist_root):
        loaded = mnist(mnist_root)
        assert loaded.train.images.shape == (30, 1, 28, 28)
        assert loaded.test.labels.shape == (20,)
        assert float(loaded.train.images.max()) == 1.0
        assert torch.equal(mnist(mnist_root / "mnist").train.images, loaded.train.images)

    def test_missing_folder_and_missing_file(self, mnist_root):
        with pytest.raises(FileNotFoundError, match="expected a folder that holds MNIST"):
            mnist(mnist_root / "nowhere")
        (mnist_root / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.gz .*found none"):
            mnist(mnist_root)

    def test_labels_must_belong_to_the_images(self, mnist_root):
        (mnist_root / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(29))))
        with pytest.raises(ValueError, match=r"as many labels .*\(30\), got 29"):
            mnist(mnist_root)

    @pytest.mark.parametrize(("name", "array"), [
        ("images-idx3", np.zeros((30, 8, 8))), ("labels-idx1", np.full(30, 10)), ("images-idx3", np.zeros(30)),
        ("labels-idx1", np.zeros((30, 1))),
    ])  # fmt: skip
    def test_other_formats_are_refused(self, mnist_root, name, array):
        (mnist_root / "mnist" / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
        with pytest.raises(ValueError, match=r"expected (images|labels)"):
            mnist(mnist_root)


class TestImages:
    def test_digits_are_split_once_and_for_all_by_the_seed(self):
        first, again, other = digits(0), digits(0), digits(1)
        assert (len(first.train), len(first.test)) == (1297, 500)
        assert torch.equal(first.test.images, again.test.images)
        assert not torch.equal(first.test.labels, other.test.labels)
        assert float(first.train.images.min()) == 0
        assert float(first.train.images.max()) == 1

    @pytest.mark.parametrize("side", [8, 28])
    def test_quarter_turns_are_exact_and_anticlockwise(self, side):
        images = torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(0))
        for turns in range(5):
            torch.testing.assert_close(
                rotated(images, 90 * turns), torch.rot90(images, turns, (2, 3)), atol=2e-5, rtol=0
            )

    @pytest.mark.parametrize("degrees", [15, 40, 165])
    def test_turns_equal_those_of_scipy(self, degrees):
        images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        turned = rotate(images.numpy(), degrees, axes=(3, 2), reshape=False, order=1, mode="grid-constant")
        torch.testing.assert_close(rotated(images, degrees), torch.from_numpy(turned), atol=2e-5, rtol=0)

    def test_noise_is_a_function_of_the_seed_and_stays_in_range(self):
        images = torch.full((200, 1, 8, 8), 0.5)
        assert torch.equal(noisy(images, 0.1, 3), noisy(images, 0.1, 3))
        assert not torch.equal(noisy(images, 0.1, 3), noisy(images, 0.1, 4))
        assert float((noisy(images, 0.1, 3) - images).std()) == pytest.approx(0.1, rel=0.03)
        loud, pure = noisy(images, 2.0, 0), pure_noise(images, 0)
        assert 0 <= float(loud.min()) <= float(loud.max()) <= 1
        assert torch.equal(pure, pure_noise(images, 0))
        assert float(pure.mean()) == pytest.approx(0.5, abs=0.02)

    def test_batches_hold_every_image_once_in_order(self):
        images = ImageSet(torch.arange(7.0).reshape(7, 1, 1, 1), torch.arange(7))
        batches = images.batches(3)
        assert [len(y) for _, y in batches] == [3, 3, 1]
        assert torch.equal(torch.cat([y for _, y in batches]), images.labels)
        assert len(images.first(2)) == 2
        assert len(images.first(None)) == 7


class TestNetworks:
    @pytest.mark.parametrize(("name", "side", "size"), [("digits", 8, 3866), ("mnist", 28, 29066)])
    def test_sizes_and_seeds(self, name, side, size):
        images = torch.rand(20, 1, side, side, generator=torch.Generator().manual_seed(0))
        before = torch.random.get_rng_state()
        network, again = network_for(name, images, 5), network_for(name, images, 5)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert count_parameters(network) == size
        assert network.eval()(images).shape == (20, 10)
        for one, other in zip(network.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other)
        standard = network[0](images)
        assert float(standard.mean()) == pytest.approx(0, abs=1e-5)
        assert float(standard.std()) == pytest.approx(1, abs=1e-5)

    def test_training_lowers_the_loss_and_ends_in_evaluation_mode(self):
        data = digits(0).train.first(100)
        network = network_for("digits", data.images, 0)
        short = train(network, data, Recipe(epochs=1), 0, progress=False)
        long = train(network_for("digits", data.images, 0), data, Recipe(epochs=20), 0, progress=False)
        assert not any(module.training for module in network.modules())
        assert long.loss < 0.5 * short.loss
        assert 0.9 < long.accuracy <= 1


class TestScores:
    def test_equal_naive_numbers(self):
        pred, labels = predictive(), torch.arange(40) % 3
        found = scores("clean", 0, answers(pred), labels, seed=0).methods
        p = [float(pred.mean[n].softmax(-1)[labels[n]]) for n in range(40)]
        assert found[NETWORK].nll == pytest.approx(-np.log(p).mean(), rel=1e-5)
        assert found[NETWORK].accuracy == np.mean([int(pred.mean[n].argmax()) == int(labels[n]) for n in range(40)])
        for method, probs in ((MONTE_CARLO, pred.probs), (PROBIT, answers(pred).probs[PROBIT])):
            q = [float(probs[n, labels[n]]) for n in range(40)]
            assert found[method].nll == pytest.approx(-np.log(q).mean(), rel=1e-4)

    def test_em_has_a_column_of_its_own_width(self):
        pred, labels = replace(predictive(), width=0.2, joint_width=0.4), torch.arange(40) % 3
        found = scores("clean", 0, answers(pred), labels, seed=0).methods
        assert tuple(found) == METHODS
        at_em = Predictive(pred.mean, pred.deviations, Categorical())
        assert found[EM_WIDTH].nll == pytest.approx(-float(at_em.log_prob(labels).mean()))
        assert found[EM_WIDTH].joint_nll != found[MONTE_CARLO].joint_nll

    def test_the_joint_of_a_point_estimate_is_ten_times_its_marginal_on_average(self):
        labels = torch.zeros(40, dtype=torch.int64)
        pred = Predictive(torch.ones(40, 3), torch.zeros(5, 40, 3), Categorical())
        found = scores("clean", 0, answers(pred), labels, seed=0).methods
        assert found[NETWORK].joint_nll == pytest.approx(10 * np.log(3), rel=1e-5)
        assert found[MONTE_CARLO].joint_nll == pytest.approx(10 * np.log(3), rel=1e-5)
        assert found[PROBIT].joint_nll is None

    def test_auroc_is_of_entropy_and_where_there_are_functions_of_their_disagreement(self):
        clean, wide = predictive(), replace(predictive(), mean=torch.zeros(40, 3), joint_width=3.0)
        found, labels = aurocs(answers(clean), answers(wide)), [0] * 40 + [1] * 40
        probs = torch.cat([clean.mean.softmax(-1), wide.mean.softmax(-1)]).double()
        assert found[NETWORK] == pytest.approx(roc_auc_score(labels, -(probs * probs.log()).sum(-1)))
        disagreement = torch.cat([clean.mutual_information, wide.mutual_information])
        assert found[MONTE_CARLO] == pytest.approx(roc_auc_score(labels, disagreement))
        assert found[MONTE_CARLO] > 0.9


class TestTable:
    def test_targets_are_judged_row_by_row_and_together(self):
        rows = table(evaluation(ours_nll=1.04))
        by_measure = {row.measure: row for row in rows}
        assert by_measure["NLL"].met
        assert by_measure["accuracy"].met
        assert by_measure["ECE"].met is None
        assert by_measure["NLL, rotated by 15 degrees"].met is False
        assert by_measure["NLL, rotated by 30 degrees"].met
        assert by_measure["joint NLL, 10 labels"].met is False
        judged = {verdict.target: verdict for verdict in verdicts(rows)}
        assert not judged["NLL better on every rotated set"].met
        assert judged["NLL better on every rotated set"].detail == "on 1 of 2 sets; not on: rotated by 15 degrees"
        assert judged["NLL better on every noisy set"].met
        assert judged["AUROC not lower"].met

    def test_a_clean_nll_over_the_allowance_is_not_met(self):
        rows = {row.measure: row for row in table(evaluation(ours_nll=1.06))}
        assert rows["NLL"].met is False

    def test_text_is_aligned(self):
        rows = table(evaluation(ours_nll=0.9))
        lines = as_text(rows).splitlines()
        assert len(lines) == len(rows) + 1
        assert len({line.index(line.split("  ")[-1]) for line in lines[1:] if line.endswith("met")}) == 1


def test_demo_data_names_no_file_twice():
    assert len(set(demo_data._MNIST_FILES)) == 4
    assert isinstance(network_for("digits", torch.rand(4, 1, 8, 8), 0), nn.Module)

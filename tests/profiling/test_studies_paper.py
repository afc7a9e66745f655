"""The paper's tables beside ours: sizes without training, every difference explained, and what trained studies add."""

import json
from collections import defaultdict

import pytest

from spikeport.core import ModelSpec, SpikeportError, TrainConfig, Twin
from spikeport.profiling.energy import model_sizes
from spikeport.profiling.studies import SCHEDULES, ablation_study, compare_study, paper_table, run_quick, run_study
from spikeport.profiling.studies.paper import QUICK, TABLES, Line, quick_study
from spikeport.profiling.studies.study import STUDY_FILE, TRIALS

#: Ours for 10, 100 and 200 classes: parameters and MACs as the paper counts them.
SIZES = {
    "shufflenetv2": ((913_449, 887_496), (1_005_699, 887_496), (1_108_199, 3_754_984)),
    "xception": ((1_006_282, 375_788_554), (1_052_452, 375_834_724), (1_103_752, 1_503_236_296)),
    "mnasnet": ((148_546, 12_752_650), (160_156, 12_764_260), (173_056, 51_031_240)),
    "mixnet": ((84_722, 4_352_522), (107_852, 4_375_652), (133_552, 17_451_208)),
    "squeezenet": ((736_458, 4_466_848), (782_628, 4_468_288), (833_928, 17_879_552)),
    "squeezenet-p": ((549_114, 4_227_232), (595_284, 4_228_672), (646_584, 16_921_088)),
}
PARAMETERS = {
    "full": 736_458, "head-1": 312_298, "head-2": 312_298, "tail-1": 673_722, "tail-2": 673_722,
    "alt-1": 363_498, "alt-2": 363_498, "ref-1": 549_114, "ref-2": 611_850,
}  # fmt: skip


def by_quantity(lines: list[Line]) -> dict[str, dict[str, Line]]:
    found: dict[str, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        found[line.quantity][line.row] = line
    return found


@pytest.fixture(scope="module")
def untrained() -> dict[str, dict[str, dict[str, Line]]]:
    return {table: by_quantity(paper_table(table)) for table in TABLES}


def test_parameters_and_macs_of_table_4_1_are_computed_for_every_row(untrained):
    table = untrained["4.1"]
    for model, per_dataset in SIZES.items():
        for dataset, (parameters, macs) in zip(("cifar10", "cifar100", "tiny-imagenet"), per_dataset, strict=True):
            assert table["parameters (k)"][f"{dataset} {model}"].ours == parameters / 1e3
            assert table["MACs (k)"][f"{dataset} {model}"].ours == macs / 1e3
    assert len(table["parameters (k)"]) == len(table["MACs (k)"]) == 18


def test_squeezenets_macs_are_the_papers_and_so_are_the_full_models_parameters(untrained):
    table = untrained["4.1"]
    for dataset in ("cifar10", "cifar100", "tiny-imagenet"):
        assert table["MACs (k)"][f"{dataset} squeezenet"].equal
        assert table["MACs (k)"][f"{dataset} squeezenet-p"].equal
        assert table["parameters (k)"][f"{dataset} squeezenet"].equal
        assert not table["parameters (k)"][f"{dataset} squeezenet-p"].equal


def test_parameters_of_table_4_2_are_computed_for_nine_rows(untrained):
    assert {name: line.ours for name, line in untrained["4.2"]["parameters"].items()} == PARAMETERS
    assert [name for name, line in untrained["4.2"]["parameters"].items() if line.equal] == ["full", "tail-1"]


def test_every_computed_figure_is_equal_or_explained_and_the_rest_is_not_run(untrained):
    computed = {"parameters (k)", "MACs (k)", "parameters", "CNN energy (mJ)"}
    for table in untrained.values():
        for quantity, lines in table.items():
            for line in lines.values():
                assert (line.ours is not None) == (quantity in computed)
                if line.ours is None:
                    assert line.cells()[1:] == ("not run", "–")
                else:
                    assert line.reason
                    assert (line.reason == "equal, as printed") == line.equal


def kept(*modules: int) -> int:
    return model_sizes(ModelSpec("squeezenet", Twin(), keep=modules))["parameters"]


def test_the_reasons_given_for_schedules_are_true(untrained):
    lines = untrained["4.2"]["parameters"]
    for name, number in (("head-2", kept(2, 3, 4, 6, 8)), ("tail-2", kept(2, 6, 7, 8, 9))):
        assert round(number, -1) == float(lines[name].paper)
        assert f"({number:,})" in lines[name].reason
    squeeze, expand, channels = 32, 128, 256  # Fire 5 behind Fire 4: convolutions with bias, BatchNorm after each
    fire5 = channels * squeeze + squeeze * expand * (1 + 9) + 3 * (squeeze + 2 * expand)
    assert f"({fire5:,} parameters)" in lines["ref-1"].reason
    assert round(PARAMETERS["ref-1"] + fire5, -1) == float(lines["ref-1"].paper)
    for row, line in untrained["4.1"]["parameters (k)"].items():
        if row.endswith("squeezenet-p"):
            assert line.ours + fire5 / 1e3 == pytest.approx(float(line.paper), abs=0.05)
    wider = 96 * (3 * 9 + 3) - 128 * (3 * 9 + 3) - 32 * 16  # first convolution of 96 channels, then Fire 2's squeeze
    assert f"{PARAMETERS['alt-1'] + wider:,}" in lines["alt-1"].reason
    without = 128 + 2 * sum({3: 16, 5: 32, 7: 48, 9: 64}.values())
    assert f"{PARAMETERS['alt-2'] - without:,}" in lines["alt-2"].reason
    fires_3_and_7 = kept(*SCHEDULES["full"]) - 512
    assert f"({fires_3_and_7:,})" in lines["ref-2"].reason


def test_the_energy_of_the_cnn_is_the_papers_where_its_macs_are(untrained):
    lines = untrained["4.3"]["CNN energy (mJ)"]
    assert [name for name, line in lines.items() if line.equal] == ["shufflenetv2", "squeezenet"]
    assert lines["squeezenet-p"].ours == pytest.approx(4.6e-9 * 37_880_128)


@pytest.mark.parametrize(
    ("printed", "ours", "equal"),
    [("4470", 4466.848, True), ("4470", 4475.1, False), ("736.5", 736.458, True), ("0.81", 0.8049, False)],
)
def test_equal_means_at_the_digits_the_paper_prints(printed, ours, equal):
    assert Line("row", "quantity", printed, ours).equal is equal


def fake_study(folder, study, accuracy):
    """A study's folder with finished trials whose numbers are chosen."""
    folder.mkdir()
    (folder / STUDY_FILE).write_text(json.dumps(study.to_dict()))
    counts = dict.fromkeys(("parameters", "rate", "macs", "acs"), 1.0)
    counts |= {"energy_nj": 80_000.0, "paper_macs": 1.0, "paper_acs": 16_610_000.0, "paper_energy_nj": 35_500.0}
    for name, config in study.trials.items():
        path = folder / TRIALS / name
        path.mkdir(parents=True)
        spec = config.spec(10, (3, 32, 32))
        data = {"name": "cifar10", "image_shape": [3, 32, 32], "mean": [0] * 3, "std": [1] * 3, "class_names": ["a"]}
        results = {"test_accuracy": accuracy, "test_macro_f1": accuracy, "validation_accuracy": accuracy}
        (path / "model.json").write_text(json.dumps({"model": spec.to_dict(), "data": data, "results": results}))
        (path / "measured.json").write_text(json.dumps(counts))
    return folder


def test_trained_figures_come_from_studies_and_squeezenet_p_is_ref_1(tmp_path):
    base = TrainConfig(dataset="cifar10", data="somewhere")
    pruned = fake_study(tmp_path / "a", ablation_study(base, ("ref-1", "full"), seeds=2), 0.9)
    models = fake_study(tmp_path / "b", compare_study(base, ("squeezenet", "mixnet"), ("cnn", "snn")), 0.8)
    table = by_quantity(paper_table("4.2", [pruned, models]))
    assert table["accuracy"]["ref-1"].ours == table["accuracy"]["full"].ours == 0.9
    assert table["accuracy"]["ref-1"].reason == "2 seed(s), at most 150 epochs"
    assert table["accuracy"]["alt-1"].ours is None
    assert table["energy (mJ)"]["full"].equal
    table = by_quantity(paper_table("4.1", [pruned]))
    assert table["accuracy"]["cifar10 squeezenet-p"].difference == pytest.approx(0.9 / 0.81 - 1)
    assert table["ACs (k)"]["cifar10 squeezenet"].equal
    assert table["accuracy"]["cifar100 squeezenet"].ours is None
    table = by_quantity(paper_table("4.3", [models, pruned]))
    assert [row for row, line in table["CNN accuracy (%)"].items() if line.ours] == ["mixnet", "squeezenet"]
    assert table["SNN accuracy (%)"]["squeezenet"].ours == pytest.approx(80)
    assert table["SNN accuracy (%)"]["squeezenet-p"].ours == pytest.approx(90)
    assert table["CNN / SNN energy"]["squeezenet"].ours == pytest.approx(4.6e-9 * 54_754_624 / 0.0355)
    assert table["CNN / SNN energy, whole"]["squeezenet"].ours == pytest.approx(4.6e-9 * 54_754_624 / 0.08)


def test_a_narrow_network_has_an_accuracy_but_no_energy_beside_the_papers(tmp_path):
    narrow = fake_study(tmp_path / "q", quick_study("4.2", "somewhere"), 0.3)
    table = by_quantity(paper_table("4.2", [narrow]))
    assert table["accuracy"]["ref-1"].reason == "1 seed(s), at most 3 epochs, 2,000 images, width 0.25"
    assert table["energy (mJ)"]["ref-1"].ours is None
    assert table["energy (mJ)"]["ref-1"].reason == "counted at width 0.25: see the study's table.csv"


def test_a_network_of_another_form_is_named_and_not_counted_beside_the_papers(tmp_path):
    base = TrainConfig(dataset="cifar10", data="somewhere", spiking="every-layer", time_steps=16)
    table = by_quantity(paper_table("4.2", [fake_study(tmp_path / "e", ablation_study(base, ("ref-1",)), 0.9)]))
    assert table["accuracy"]["ref-1"].reason == "1 seed(s), at most 150 epochs, spiking every-layer, T = 16"
    for quantity in ("energy (mJ)", "energy, whole (mJ)"):
        assert table[quantity]["ref-1"].ours is None
        assert table[quantity]["ref-1"].reason.startswith("counted at spiking every-layer, T = 16: see")


def test_quick_trains_what_each_table_needs():
    assert list(quick_study("4.2", "x").rows) == list(SCHEDULES)
    assert {c.kind for c in quick_study("4.1", "x").rows.values()} == {"snn"}
    assert len(quick_study("4.3", "x").rows) == 12
    assert all(c.train_images == QUICK["train_images"] for c in quick_study("4.3", "x").trials.values())


def test_tables_and_folders_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(SpikeportError, match=r"table '4.5' is not one of 4.1, 4.2, 4.3"):
        paper_table("4.5")
    with pytest.raises(SpikeportError, match=r"table '5' is not one of"):
        run_quick("5", "x", tmp_path / "out")
    with pytest.raises(SpikeportError, match=r"study.json: no such file"):
        paper_table("4.1", [tmp_path])
    with pytest.raises(SpikeportError, match="none"):
        run_study(quick_study("4.1", str(tmp_path / "none")), tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Accelerator descriptions: what is shipped, what a digest covers, and that a wrong file is refused by line and field."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from heat_hf.hardware import load_accelerator
from heat_hf.hardware.spec import shipped_accelerators

TEXT = (files("heat_hf.hardware") / "accelerators" / "simba_l.yaml").read_text()


def test_simba_l() -> None:
    simba = load_accelerator("simba-l")
    assert simba.macs == 4096
    assert simba.clock_hz == 1.68e9
    assert [level.name for level in simba.levels] == [
        "DRAM", "GlobalBuffer", "WeightBuffer", "InputBuffer", "AccuBuffer", "WeightReg",
    ]  # fmt: skip
    assert [simba.instances(level.name) for level in simba.levels] == [1, 1, 16, 16, 128, 4096]
    assert simba.levels[0].shared * simba.clock_hz == pytest.approx(107.5e9, rel=1e-3)
    assert simba.levels[1].words == 2 * 2**20
    assert load_accelerator("simba_l") == simba
    assert "inferred" in simba.technology.lower()


def test_every_shipped_accelerator_loads() -> None:
    assert "simba-l" in shipped_accelerators()
    for name in shipped_accelerators():
        assert load_accelerator(name).name == name


def test_digest_covers_every_figure(tmp_path: Path) -> None:
    digests = {load_accelerator("simba-l").digest}
    for number in re.findall(r"(?<=: )[\d.]+(?:e9)?(?=[,}\s])", TEXT):
        file = tmp_path / "own.yaml"
        file.write_text(
            re.sub(rf"(?<=: ){re.escape(number)}(?=[,}}\s])", str(float(number) * 2).removesuffix(".0"), TEXT, count=1)
        )
        digests.add(load_accelerator(file).digest)
    assert len(digests) > 12
    copy = tmp_path / "copy.yaml"
    copy.write_text(f"# a comment\n{TEXT}")
    assert load_accelerator(copy).digest == load_accelerator("simba-l").digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("read: 256, write: 32}", "read: 0, write: 32}", r"line 25: read must be a positive number, got 0"),
        ("unrolls: [N, M, B]", "unrolls: [N, L]", r"line 21: unrolls must name some of M, N, K, B"),
        (
            "keeps: [weights]\n    words: 32768",
            "keeps: [cores]\n    words: 32768",
            r"keeps must name some of inputs, weights, outputs",
        ),
        ("mac_pJ: 0.1\n", "", r"line 2: the file lacks mac_pJ"),
        ("mac_pJ: 0.1", "mac_pJ: much", r"mac_pJ must be a positive number, got 'much'"),
        ("    words: 128\n", "    words: 0\n", r"words must be a positive integer, got 0"),
        ("    words: 2097152", "    words: 1", r"GlobalBuffer has 1 words: not even one of each of inputs, outputs"),
        ("name: InputBuffer", "name: WeightBuffer", r"line 27: two levels are named WeightBuffer"),
        ("{shared: 64}", "{shared: 64, read: 2}", r"either shared, or read and write"),
        ("energy_pJ: 15.6", "energy_pJ: 15.6\n    colour: red", r"a level has unknown fields colour"),
        ("    keeps: [inputs, weights, outputs]\n", "    keeps: [inputs, weights]\n", r"must keep all tensors"),
        ("{name: lane, size: 8", "{name: lane, size: 2.5", r"size must be a positive integer, got 2.5"),
        ("levels:", "levels: [", r"is not YAML"),
        (TEXT, "3", r"the file must be a mapping"),
        ("WeightBuffer: [K]", "WeightCache: [K]", r"line 48: loops has unknown fields WeightCache; allowed are AccuBuffer"),
        ("AccuBuffer: [M, N]", "AccuBuffer: [M, L]", r"AccuBuffer must name some of M, N, K, B, each once"),
        ("largest: [lane, vector]", "largest: [lane, warp]", r"line 48: largest must name some of PE, lane, vector"),
        ("spill: false", "spill: rarely", r"spill must be true or false, got 'rarely'"),
        (TEXT[TEXT.index("levels:") :], "levels: []\n", r"levels must be a list that is not empty"),
    ],
)
def test_bad_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    file = tmp_path / "own.yaml"
    file.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as error:
        load_accelerator(file)
    assert str(file) in str(error.value)


def test_a_missing_level(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    start, end = TEXT.index("  - name: AccuBuffer"), TEXT.index("  - name: WeightReg")
    file.write_text(TEXT.replace(TEXT[start:end], "").replace("keeps: [inputs, outputs]", "keeps: [inputs]"))
    with pytest.raises(ValueError, match="no level inside DRAM keeps outputs: a level is missing"):
        load_accelerator(file)


def test_unknown_names() -> None:
    with pytest.raises(FileNotFoundError, match=r"no accelerator 'tpu'; shipped are .*simba-l"):
        load_accelerator("tpu")
    with pytest.raises(FileNotFoundError, match=r"'cpu' is this machine, which compress and the searches measure"):
        load_accelerator("cpu")
    with pytest.raises(FileNotFoundError, match=r"no accelerator file nowhere.yaml"):
        load_accelerator("nowhere.yaml")

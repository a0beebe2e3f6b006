"""Descriptions of accelerators that are not what YAML should be: a sentence, at once, and nothing made."""

from __future__ import annotations

from pathlib import Path

import pytest

from heat_hf.hardware import load_accelerator

BOMB = "a: &a [x, x, x, x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{f'*{chr(97 + i)}, ' * 9}]\n" for i in range(20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases are not taken"),
        ("name: &n x\ntechnology: *n\n", "aliases are not taken"),
        ("name: !!python/object/apply:os.system ['touch made']\n", "could not determine a constructor"),
        ("name: !!python/name:os.system\n", "could not determine a constructor"),
        ("name: a\nname: b\n", "'name' is there twice"),
        ("name: a\nlevels:\n  - {name: b, energy_pJ: 1, energy_pJ: 2}\n", "'energy_pJ' is there twice"),
        ("[" * 20000, "is not YAML of the kind"),
    ],
)
def test_refused_in_a_sentence(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        load_accelerator("own.yaml")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "made").exists()

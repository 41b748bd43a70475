"""Tests of the predicted costs of singular value clipping; tests/csrc/test_clip_kernels.py counts its operations."""

from pathlib import Path

from benchmarks import clipping_costs

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_has_the_table_of_today(capsys):
    clipping_costs.main()
    table = capsys.readouterr().out
    assert "| **all** | fixed point |" in table
    assert table.strip() in (ROOT / "docs" / "kernels.md").read_text()


def test_costs_of_one_weight(monkeypatch):
    """Counted by hand for a weight of 128×2048: 3 blocks of 64×64 and two parts of the columns."""
    monkeypatch.setattr(clipping_costs, "DISCRIMINATOR", ((128, 2048),))
    elements = 128 * 2048
    gram = clipping_costs.cost_of_gram(fixed=True)
    assert gram.operations == 13 * 3 * 2 * 64 * 64 * 2048
    # 2 operands of the block off the diagonal, 1 of the others, and the sums of each part.
    assert gram.l2 == 4 * 64 * 2048 * 4 + 8 * 3 * 2 * 64 * 64
    product = clipping_costs.cost_of_product(fixed=False)
    assert product.operations == 6 * 2 * 32 * 64 * 128
    assert product.l2 == 6 * 96 * 128 * 8 + 2 * 6 * 32 * 64 * 8
    apply = clipping_costs.cost_of_apply(fixed=True, strip=64)
    assert apply.operations == 13 * 2 * 128 * elements
    assert (apply.l2, apply.memory) == (32 * 128 * 128 * 4 + 12 * elements, 8 * elements)

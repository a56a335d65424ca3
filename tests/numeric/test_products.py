"""Products of columns."""

import pytest
import torch

from onnxcalib.numeric import products


def add_pairs_in_16_bits(left, right):
    """``left @ right`` as a processor without VNNI has it: pairs of products of uint8 and int8 saturate."""
    unsigned = left.float() + products.UINT8_SHIFT
    pairs = (unsigned[:, :, None] * right.float()).unflatten(1, (-1, 2)).sum(2)
    return (pairs.clamp(-(2**15), 2**15 - 1).sum(1) - products.UINT8_SHIFT * right.float().sum(0)).int()


@pytest.fixture
def vnni(monkeypatch):
    for name in ("_is_vnni_supported", "_is_avx512_vnni_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    products.multiplies_integers.cache_clear()
    yield
    products.multiplies_integers.cache_clear()


@pytest.mark.parametrize(
    ("multiply", "exact"), [(add_pairs_in_16_bits, False), (lambda x, y: (x.double() @ y.double()).int(), True)]
)
def test_integers_are_multiplied_where_no_sum_of_a_pair_overflows(vnni, monkeypatch, multiply, exact):
    monkeypatch.setattr(torch, "_int_mm", multiply)
    assert products.multiplies_integers() is exact

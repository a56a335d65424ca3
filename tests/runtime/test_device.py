"""Which device a setting stands for, and what is asked of it."""

import pytest
import torch

from onnxcalib.errors import ConfigError
from onnxcalib.runtime.device import choose_device, full_precision


@pytest.mark.parametrize(
    ("setting", "seen", "kind"),
    [
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_cuda_is_taken_where_torch_sees_it_and_nothing_else_is_asked(monkeypatch, setting, seen, kind):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen)
    assert choose_device(setting).type == kind


@pytest.mark.parametrize(
    ("built", "text"), [(None, "which is built without CUDA"), ("12.8", "which is built for CUDA 12.8")]
)
def test_cuda_that_torch_does_not_see_is_refused_with_what_to_do(monkeypatch, built, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    wanted = rf"^device: found 'cuda', but torch sees no CUDA device \(.*{text}\); here allowed: 'auto' or 'cpu'; leave"
    with pytest.raises(ConfigError, match=wanted):
        choose_device("cuda")


def test_full_precision_ends_with_its_block():
    before = torch.backends.cudnn.allow_tf32
    with full_precision():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before

"""Which device a setting stands for, and what is asked of it."""

import pytest
import torch

from onnxcalib.errors import ConfigError, DeviceMemoryError
from onnxcalib.runtime.device import choose_device, explain_lack_of_memory, full_precision, lacks_memory


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


TOO_LITTLE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free. See the manual.\nSecond line"


@pytest.mark.parametrize(
    ("stage", "where"), [("reconstruct", "cuda:0 in the stage reconstruct"), (None, "cuda:0")], ids=str
)
def test_too_little_memory_names_device_and_stage_and_says_what_to_do(stage, where):
    with pytest.raises(DeviceMemoryError) as fault, explain_lack_of_memory(torch.device("cuda", 0), lambda: stage):
        raise torch.OutOfMemoryError(TOO_LITTLE)
    assert str(fault.value) == (
        f"device: found too little memory on {where} (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00"
        " GiB free); a part of the model and its samples have to fit; take --device cpu, fewer --samples, or"
        " --effort fast"
    )
    assert isinstance(fault.value.__cause__, torch.OutOfMemoryError)


def test_other_faults_of_torch_stay_what_they_are():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        with explain_lack_of_memory(torch.device("cpu"), lambda: None):
            raise RuntimeError("shapes differ")


def test_the_machine_s_own_lack_of_memory_is_known_by_its_words():
    text = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
    assert lacks_memory(RuntimeError(text)) and lacks_memory(MemoryError())
    assert not lacks_memory(RuntimeError("shapes differ"))
    with pytest.raises(DeviceMemoryError, match=r"^device: found too little memory on cpu in the stage reconstruct"):
        with explain_lack_of_memory(torch.device("cpu"), lambda: "reconstruct"):
            raise RuntimeError(text)

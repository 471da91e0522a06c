"""States on a GPU are copied to pinned host memory in the order of its work; no step after that changes the copy."""

from __future__ import annotations

import pytest
import torch

from vmae2_ds.checkpoint.host_copies import HostCopies

pytestmark = pytest.mark.gpu


def test_the_steps_after_a_copy_do_not_change_it_and_the_host_does_not_wait() -> None:
    flat = torch.randn(64 << 20, device="cuda")
    expected, copies = flat.cpu(), HostCopies()
    for save in range(2):  # the first pins the memory
        torch.cuda.synchronize()
        copies.begin()
        torch.cuda._sleep(200_000_000)  # 0.1 s: what the device still has to do before it copies
        copy = copies.copy({"views": [flat[:100], flat[100:]], "step": torch.tensor(float(save))})
        assert copies._arrived
        assert not save or not copies._arrived[0].query(), "the host is ahead of the copy"
        flat.add_(1)
        copies.wait()
        assert torch.equal(copy["views"][0], expected[:100])
        assert torch.equal(copy["views"][1], expected[100:])
        assert copy["views"][0].untyped_storage().data_ptr() == copy["views"][1].untyped_storage().data_ptr()
        assert copy["views"][0].is_pinned()
        assert copy["step"] == save
        expected = flat.cpu()

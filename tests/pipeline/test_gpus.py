import os
import threading

import pytest

from sparsemm.pipeline.gpus import gpu, visible_gpus


def test_two_jobs_never_share_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    with gpu(tmp_path) as (first, locks), gpu(tmp_path) as (second, _):
        assert (first, second) == ({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"})
        assert all(os.fstat(lock) for lock in locks)
    with gpu(tmp_path) as (again, _):
        assert again == {"CUDA_VISIBLE_DEVICES": "0"}


def test_a_model_that_one_gpu_cannot_hold_waits_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, MIG-GPU-a/7/0,GPU-b")
    taken = threading.Event()

    def spread():
        with gpu(tmp_path, every=True) as (variables, locks):
            assert variables == {"CUDA_VISIBLE_DEVICES": "3,MIG-GPU-a/7/0,GPU-b"} and len(locks) == 3
            taken.set()

    with gpu(tmp_path):
        job = threading.Thread(target=spread)
        job.start()
        assert not taken.wait(0.3)
    job.join()
    assert taken.is_set()
    with gpu(tmp_path) as (one, _):
        assert one == {"CUDA_VISIBLE_DEVICES": "3"}


@pytest.mark.parametrize("value", ["", "-1"])
def test_without_gpus_there_is_nothing_to_take(tmp_path, monkeypatch, value):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == []
    with gpu(tmp_path) as taken:
        assert taken == ({}, ())


def test_nvidia_smi_is_asked(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho GPU-a\necho GPU-b\n")
    script.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    assert visible_gpus() == ["GPU-a", "GPU-b"]

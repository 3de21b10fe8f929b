"""Several publishers or promoters as processes of their own, forked after the slow imports; run by the tests.

processes.py kill ROOT URI KEY:METHOD:WHEN ...   publish KEY and die at a call of METHOD
processes.py both ROOT URI publish|promote KEY CACHE CACHE   two at the same time; of two hosts if the caches differ
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from mlflow import MlflowClient

from sparsemm.errors import SparseMMError
from sparsemm.params import load_params
from sparsemm.registry import artifacts
from sparsemm.registry.promote import promote
from sparsemm.registry.publish import publish

ROOT, URI = Path(sys.argv[2]), sys.argv[3]
PARAMS = load_params(ROOT / "params.yaml")


def forked(work):
    """Run `work` in a child; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        report = work()
    except SparseMMError as error:
        report = {"error": str(error)}
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os.write(1, (json.dumps(report) + "\n").encode())  # one write: two children do not mix their lines
    os._exit(0)


def die_at(method, when):
    """Kill this process before or after the first call of a method of the client, or of `artifacts`."""
    owner = MlflowClient if hasattr(MlflowClient, method) else artifacts
    real = getattr(owner, method)

    def deadly(*arguments, **options):
        if when == "after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, method, deadly)


def published(key):
    return vars(publish(PARAMS, key, ROOT, tracking_uri=URI))


def promoted(key):
    done = promote(PARAMS, key, ROOT, tracking_uri=URI)
    return {"version": done.version, "before": done.before, "moved": done.moved}


if sys.argv[1] == "kill":
    for point in sys.argv[4:]:
        key, method, when = point.split(":")

        def victim(key=key, method=method, when=when):
            die_at(method, when)
            return published(key)

        _, status = os.waitpid(forked(victim), 0)
        assert os.WIFSIGNALED(status), f"{point} was never reached"
else:
    work = {"publish": published, "promote": promoted}[sys.argv[4]]
    children = []
    for cache in sys.argv[6:]:
        os.environ["XDG_CACHE_HOME"] = cache
        children.append(forked(lambda: work(sys.argv[5])))
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0

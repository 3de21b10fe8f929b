"""Runs lmms-eval's command line also if torch and torchvision are of different builds.

`python -m lmms_eval` imports torchvision before it reads any entry point, and fails if torchvision's operators do not
load. `python -m sparsemm.evaluate.lmms_eval` declares them first. Arguments and results are those of lmms-eval.
"""

from sparsemm.compat import define_missing_torchvision_operators

if __name__ == "__main__":
    define_missing_torchvision_operators()
    from lmms_eval.cli.dispatch import main

    main()

"""`python -m sparsemm.evaluate.lmms_eval`: lmms-eval's command line, also beside a torchvision of another build.

`python -m lmms_eval` imports torchvision before it reads any entry point, and ends there if torchvision's operators do
not load. Here they are declared first; arguments and results are lmms-eval's.
"""

from sparsemm.compat import define_missing_torchvision_operators

if __name__ == "__main__":
    define_missing_torchvision_operators()
    from lmms_eval.cli.dispatch import main

    main()

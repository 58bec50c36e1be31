# SPDX-License-Identifier: Apache-2.0
"""Commands: ``python -m common <command>``; ``python -m common <command> --help`` describes one."""

from __future__ import annotations

import fire
from fire.decorators import SetParseFn, SetParseFns
from fire.parser import DefaultParseValue

from .cli.benchmark import benchmark
from .cli.cine import cine
from .cli.compare import compare
from .cli.eta import eta
from .cli.learn2reg import learn2reg
from .cli.options import options
from .cli.pack import pack
from .cli.register import register
from .cli.scaffold import render, scaffold
from .cli.scales import scales
from .cli.study import study
from .cli.transform import score, transform
from .cli.verify import verify
from .console import forgive_signs
from .runs import messages

COMMANDS = {
    "benchmark": benchmark, "cine": cine, "compare": compare, "eta": eta, "learn2reg": learn2reg, "options": options,
    "pack": pack, "register": register, "render": render, "scaffold": scaffold, "scales": scales, "score": score,
    "study": study, "transform": transform, "verify": verify,
}  # fmt: skip

# Paths as they are typed: fire by itself reads "run#1" as "run" and "2024" as a number.
for command in (compare, options, pack, register, render, scaffold, score, transform, verify):
    SetParseFn(str)(command)
SetParseFns(failures=DefaultParseValue)(compare)
SetParseFns(bundle=str, output_dir=str, device=str, dataset_dir=str, ckpt_path=str)(learn2reg)
SetParseFns(name=str, output_dir=str, device=str, dataset_dir=str, bundle=str)(study)
SetParseFns(bundle=str, output_dir=str, device=str, dataset_dir=str)(scales)
SetParseFns(image=str, output_dir=str, label=str, es_label=str, bundle=str, ckpt_path=str, device=str)(cine)
SetParseFns(bundle=str, ckpt_path=str, output_dir=str, device=str, dataset_dir=str)(eta)

if __name__ == "__main__":
    forgive_signs()
    messages.install(debug=False)
    fire.Fire(COMMANDS, name="common")

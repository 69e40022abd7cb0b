"""The verb that looks at an installation: doctor."""

import argparse
from dataclasses import asdict
from typing import Any

from precisionlm.cli.verbs import add_verb
from precisionlm.errors import BAD_INPUT, DONE
from precisionlm.json_text import dumps

_HELP = """\
Look at this installation: Python, packages, devices, fused attention, kept executables, disk, extras, and a self-test.
A line each: ok, warning (it works, but), or problem, with what to do. The self-test takes seconds: it prepares text,
trains a tiny model at W4A8, audits it, rounds its weights after training, and compares with what is known beforehand.
Exit code 2 where there is a problem, else 0."""


def add_doctor(verbs: Any) -> None:
    """Register doctor."""
    doctor = add_verb(verbs, "doctor", _doctor, _HELP, "precisionlm doctor")
    doctor.add_argument("--no-self-test", action="store_true", help="look only, compute nothing")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")


def _doctor(args: argparse.Namespace) -> int:
    from precisionlm.doctor import machine, packages, self_test
    from precisionlm.doctor.finding import found_by, worst

    checks = {
        "python": packages.python,
        "precisionlm": packages.package,
        "jax": packages.jax,
        "devices": machine.devices,
        "attention": machine.attention,
        "executables": machine.executables,
        "disk": machine.disk,
        "extras": packages.extras,
    }
    if not args.no_self_test:
        checks["self-test"] = self_test.self_test
    findings = []
    for name, check in checks.items():
        findings.append(found_by(name, check))
        if not args.json:
            one = findings[-1]
            print(f"{one.status:8} {one.name:12} {one.text}", flush=True)
            if one.advice:
                print(f"{'':21} {one.advice}", flush=True)
    status = worst(findings)
    if args.json:
        print(dumps({"status": status, "findings": [asdict(one) for one in findings]}, indent=1))
    return BAD_INPUT if status == "problem" else DONE

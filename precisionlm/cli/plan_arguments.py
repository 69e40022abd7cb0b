"""The arguments of the verb plan."""

import argparse
from typing import Any

from precisionlm.cli.assignments import assignments


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """What to decide, and what is already decided."""
    parser.add_argument("--published", action="store_true", help="use the constants its paper prints")
    parser.add_argument("--with-fit", action="store_true", help="use constants fitted to --runs, with intervals")
    parser.add_argument(
        "--no-offsets", action="store_true", help="the law without offsets of its factors, if it has it"
    )
    parser.add_argument(
        "--compute", type=float, metavar="C", help="training and serving, 16-bit-equivalent FLOPs: (6 N D + 2 N T) P/16"
    )
    parser.add_argument(
        "--size", "--N", dest="size", type=float, metavar="N", help="keep this many parameters (without embeddings)"
    )
    parser.add_argument(
        "--tokens", "--D", dest="tokens", type=float, metavar="D", help="keep this many training tokens"
    )
    parser.add_argument("--bits", "--P", dest="bits", type=float, metavar="P", help="keep this width")
    parser.add_argument(
        "--format", metavar="NAME", help="keep this format: e4m3, fp4, int4, mxfp4, bf16, or one the law was fitted on"
    )
    parser.add_argument("--block", type=float, metavar="B", help="elements that share a scale, for laws that read it")
    parser.add_argument("--at", metavar="S=VALUE,...", help="values of the law's other symbols: P_post=4, P=fp4")
    parser.add_argument("--cost", default="linear", help="linear, linear:OFFSET, or a table with columns bits, seconds")
    parser.add_argument("--inference-tokens", type=float, default=0.0, metavar="T", help="tokens to be served later, "
                        "paid from the same budget")  # fmt: skip
    parser.add_argument("--critical", action="store_true", help="tokens beyond which more training hurts, for --size")
    parser.add_argument("--iso-loss", type=float, metavar="LOSS", help="sizes that reach this loss at 2 to 16 bits")
    parser.add_argument("--next", type=int, metavar="K", help="the K runs to add to --runs that narrow --quantity most")
    parser.add_argument("--quantity", default="P", help="a constant's name, or P: the optimal bits (default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def plan_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `api.plan`."""
    same = ("compute", "size", "tokens", "bits", "block", "cost", "inference_tokens", "critical", "iso_loss", "next",
            "quantity")  # fmt: skip
    return {name: getattr(arguments, name) for name in same} | {
        "format": arguments.format or "",
        "at": assignments("--at", arguments.at, "SYMBOL=VALUE"),
        "offsets": not arguments.no_offsets,
    }
